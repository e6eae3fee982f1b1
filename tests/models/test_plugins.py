"""A plug-in is found and pinned without running its code, and loads only what it offers and a person has named."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from tests.plugin_files import OWN_TASK, install, registries_kept

from agfl_models.errors import ConfigError
from agfl_models.files.store import load_model, save_model
from agfl_models.model.config import ModelConfig
from agfl_models.plugins import described, enable, installed, is_enabled, names_in, offers, pin_of
from agfl_models.registry import plugins_used
from agfl_models.tasks.config import TASKS
from agfl_models.validation import validate
from agfl_protocol.methods.registry import METHODS

TASK = {"agfl.tasks": {"own_task": "own_plugin:OwnConfig"}}
METHODS_AND_TASK = {"agfl.methods": {"own_method": "own_plugin:OwnMethod"}, **TASK}
METHOD = """
from typing import Literal
from agfl_protocol.methods.method import Method, MethodConfig


class OwnMethodConfig(MethodConfig):
    type: Literal["own_method"]
    is_chosen = True


class OwnMethod(Method):
    name = "own_method"
    config = OwnMethodConfig
"""
LAYER = """
from pathlib import Path
from typing import Literal
from agfl_models.layers.feed_forward import FFConfig


class OwnFF(FFConfig):
    type: Literal["own_ff"] = "own_ff"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with registries_kept():
        yield tmp_path / "site"


def put(site: Path, code: str = OWN_TASK, version: str = "1.0", **more: str) -> None:
    install(site, "own-plugin", version, {"own_plugin.py": code, **more}, TASK)


def files_of(site: Path) -> str:
    return pin_of(distribution("own-plugin"), "plugins").files


def test_finding_and_hashing_run_no_code(site: Path, tmp_path: Path) -> None:
    put(site, f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n" + OWN_TASK)
    (one,) = [one for one in installed() if one.name == "own-plugin"]
    assert described(one).startswith("own-plugin 1.0 (files ")
    assert [entry.name for entry in offers(one)] == ["own_task"]
    assert not (tmp_path / "ran").exists()
    enable(["own-plugin"])
    assert (tmp_path / "ran").exists()


def test_the_hash_is_of_the_files_alone_not_of_how_they_were_installed(site: Path) -> None:
    put(site, **{"data/table.txt": "1"})
    before = files_of(site)
    info = site / "own_plugin-1.0.dist-info"
    (info / "INSTALLER").write_text("uv")
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: own_plugin\nVersion: 1.0\n")
    (site / "__pycache__").mkdir()
    (site / "__pycache__" / "own_plugin.cpython-311.pyc").write_text("made here")
    with (info / "RECORD").open("a") as record:
        record.write("own_plugin-1.0.dist-info/INSTALLER,sha256=YQ,2\n__pycache__/own_plugin.cpython-311.pyc,,\n")
        record.write("../../bin/own,sha256=YQ,9\n")
    rows = (info / "RECORD").read_text().splitlines(keepends=True)
    (info / "RECORD").write_text("".join(reversed(rows)))
    assert files_of(site) == before


def test_what_it_offers_is_part_of_the_hash(site: Path) -> None:
    put(site)
    before = files_of(site)
    entries = site / "own_plugin-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text().replace("agfl.tasks", "agfl.layers"))
    assert files_of(site) != before


def test_a_folder_called_as_another_distribution_is_not_that(site: Path) -> None:
    put(site)
    metadata = site / "own_plugin-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("own-plugin", "own-other"))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-223"):
        enable(["own-plugin"])


@pytest.mark.parametrize(
    "change",
    [
        {"data/table.txt": "2"},
        {"data/tables.txt": "1"},
        {"data/table.txt": "1", "more.py": ""},
        {"data/table.txt1": ""},
        {"data/table.txt": "1", "code": OWN_TASK + "\n"},
    ],
)
def test_any_change_of_a_file_changes_it(site: Path, tmp_path: Path, change: dict[str, str]) -> None:
    put(site, **{"data/table.txt": "1"})
    before = files_of(site)
    for path in sorted(site.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    put(site, **change)
    assert files_of(site) != before


def test_what_is_on_disk_counts_not_what_the_record_says_of_it(site: Path) -> None:
    put(site)
    before = files_of(site)
    (site / "own_plugin.py").write_text(OWN_TASK + "# changed after it was installed\n")
    assert files_of(site) != before


def test_an_editable_installation_cannot_be_pinned(site: Path) -> None:
    put(site)
    (site / "own_plugin-1.0.dist-info" / "direct_url.json").write_text(
        json.dumps({"url": "file:///home/me/own", "dir_info": {"editable": True}})
    )
    with pytest.raises(ConfigError, match="own-plugin must be installed as a wheel") as caught:
        enable(["own-plugin"])
    assert caught.value.code == "AGFL-CONFIG-227"
    assert "own_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("code", "offers_", "expected"),
    [
        ("import nothing_like_it", TASK, "AGFL-CONFIG-225"),
        ("raise RuntimeError('two\\nlines')", TASK, "AGFL-CONFIG-225"),
        ("OwnConfig = 3", TASK, "AGFL-CONFIG-226"),
        ("class OwnConfig: pass", TASK, "AGFL-CONFIG-130"),
        (OWN_TASK.replace("def scores", "def score"), TASK, "AGFL-CONFIG-272"),
        (OWN_TASK.replace('"own_task"', '"translation"'), TASK, "AGFL-CONFIG-132"),
        (OWN_TASK.replace('"own_task"', '"other"'), TASK, "AGFL-CONFIG-271"),
        ("import sys\nsys.exit(0)", TASK, "AGFL-CONFIG-225"),
        ("from builtins import object as OwnConfig", TASK, "AGFL-CONFIG-274"),
        ("from elsewhere import OwnConfig", TASK, "AGFL-CONFIG-229"),
        (OWN_TASK + "from elsewhere import Aside\nTASKS.register(Aside)", TASK, "AGFL-CONFIG-229"),
        (METHOD.replace("(Method)", "") + OWN_TASK, METHODS_AND_TASK, "AGFL-CONFIG-217"),
        (METHOD + OWN_TASK.replace("OwnConfig", "Other"), METHODS_AND_TASK, "AGFL-CONFIG-225"),
        (OWN_TASK, {"other.group": {"own_task": "own_plugin:OwnConfig"}}, "AGFL-CONFIG-224"),
    ],
)
def test_what_is_no_plugin_is_refused_in_one_line_that_names_it(
    site: Path, code: str, offers_: dict[str, dict[str, str]], expected: str
) -> None:
    install(site, "own-plugin", "1.0", {"own_plugin.py": code}, offers_)
    aside = OWN_TASK.replace("OwnConfig(", "Aside(").replace('"own_task"', '"aside"')
    (site / "elsewhere.py").write_text(OWN_TASK + aside)
    names, methods = TASKS.names, list(METHODS)
    for _ in range(2):  # the second time finds nothing of the first
        sys.modules.pop("own_plugin", None)
        with pytest.raises(ConfigError) as caught:
            enable(["own-plugin"])
        assert caught.value.code == expected
        assert "own-plugin" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (TASKS.names, METHODS, is_enabled("own-plugin")) == (names, methods, False)
    with plugins_used() as used:  # and what is shipped is nobody's
        TASKS.validate({"type": "translation"})
    assert used == set()
    put(site)  # mended
    sys.modules.pop("own_plugin", None)
    importlib.invalidate_caches()
    assert enable(["own-plugin"])


def spoil(info: Path, record: str) -> None:
    (info / "RECORD").write_bytes(record.encode("latin-1"))


@pytest.mark.parametrize(
    "record", ["\xff,sha256=a,1", "own_plugin.py,sha256=a,1,2,3", "own_plugin.py,sha256=a,xx", "a.py,sha256", None]
)
def test_a_record_that_cannot_be_read_is_refused_and_stops_nobody_from_seeing_others(
    site: Path, record: str | None
) -> None:
    put(site)
    info = site / "own_plugin-1.0.dist-info"
    (info / "RECORD").unlink() if record is None else spoil(info, record)
    with pytest.raises(ConfigError, match=r"AGFL-CONFIG-22[78]"):
        enable(["own-plugin"])
    (shown,) = (described(one) for one in installed() if one.name == "own-plugin")
    assert shown.startswith("1.0; plugins: own-plugin")


def test_a_file_of_which_the_record_has_no_hash_is_hashed_all_the_same(site: Path) -> None:
    put(site, **{"own_more.py": "x = 1"})
    record = site / "own_plugin-1.0.dist-info" / "RECORD"
    rows = [row.partition(",")[0] + ",," if row.startswith("own_more") else row for row in record.read_text().split()]
    record.write_text("\n".join(rows) + "\n")
    before = files_of(site)
    (site / "own_more.py").write_text("x = 2")
    assert files_of(site) != before


def test_code_in_a_folder_called_as_metadata_is_hashed(site: Path) -> None:
    put(site, **{"own/a.dist-info/code.py": "x = 1"})
    before = files_of(site)
    (site / "own/a.dist-info/code.py").write_text("x = 2")
    assert files_of(site) != before


def test_a_source_tree_is_no_plugin(site: Path) -> None:
    (site / "own_plugin.egg-info").mkdir(parents=True)
    (site / "own_plugin.py").write_text(OWN_TASK)
    (site / "own_plugin.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: own-plugin\nVersion: 1.0\n")
    (site / "own_plugin.egg-info" / "SOURCES.txt").write_text("own_plugin.py\n")
    (site / "own_plugin.egg-info" / "entry_points.txt").write_text("[agfl.tasks]\nown_task = own_plugin:OwnConfig\n")
    with pytest.raises(ConfigError, match="AGFL-CONFIG-227"):
        enable(["own-plugin"])


def test_a_file_of_the_same_name_that_python_finds_first_is_not_taken_for_the_plugin(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "own_plugin.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-229"):
        enable(["own-plugin"])


def test_of_two_copies_the_one_that_python_imports_is_shown(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site)
    install(tmp_path / "first", "own-plugin", "2.0", {"own_plugin.py": OWN_TASK}, TASK)
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    (shown,) = [described(one) for one in installed() if one.name == "own-plugin"]
    assert shown.startswith(str(enable(["own-plugin"])[0]))


def test_a_misspelled_name_is_told_the_right_one_and_a_name_alone_is_no_list(site: Path) -> None:
    put(site)
    with pytest.raises(ConfigError, match=r"got 'own-plugn' \(did you mean 'own-plugin'\?\) .AGFL-CONFIG-223"):
        enable(["own-plugn"])
    with pytest.raises(ConfigError, match="AGFL-CONFIG-273"):
        enable("own-plugin")


@pytest.mark.parametrize("name", ["../own_plugin", "os", "own_plugin:OwnConfig", "", "torch"])
def test_a_path_a_module_and_any_other_distribution_are_no_plugins(site: Path, name: str) -> None:
    put(site)
    with pytest.raises(ConfigError, match="plugins: "):
        enable([name])
    assert "own_plugin" not in sys.modules


@pytest.mark.parametrize(
    "listed", ["own-plugin", [3], [None], [{"version": "1"}], [["own-plugin"]], ["x"] * 17, {"own-plugin": 1}, True]
)
def test_a_list_that_is_none_is_refused(listed: object) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: plugins"):
        names_in({"plugins": listed}, "run.yaml")


def test_a_name_may_be_written_in_any_way_that_installers_take(site: Path) -> None:
    put(site)
    (one,) = enable(["Own_Plugin"])
    assert enable(["own.plugin", "own-plugin"]) == (one,)
    assert one.name == "own-plugin"


def test_what_is_used_of_it_is_known_also_what_its_module_registers_by_itself(site: Path) -> None:
    aside = OWN_TASK.replace("class OwnConfig", "@TASKS.register\nclass Aside").replace('"own_task"', '"aside"')
    put(site, OWN_TASK + aside)
    enable(["own-plugin"])
    for name, used in (("own_task", {"own-plugin"}), ("aside", {"own-plugin"}), ("language_modeling", set())):
        with plugins_used() as found_:
            TASKS.validate({"type": name})
        assert found_ == used


def test_a_layer_of_one_is_known_wherever_it_stands_and_its_model_is_used_once_it_is_enabled(
    site: Path, tmp_path: Path
) -> None:
    install(site, "own-plugin", "1.0", {"own_plugin.py": LAYER}, {"agfl.layers": {"own_ff": "own_plugin:OwnFF"}})
    enable(["own-plugin"])
    nested = {"repeat": 2, "layers": [{"type": "rnn", "cell": "mingru"}, {"type": "own_ff"}]}
    with plugins_used() as used:
        config = validate(ModelConfig, {"vocab_size": 259, "dim": 8, "layers": [nested]}, "model")
    assert used == {"own-plugin"}
    from agfl_models.model.families import build_model

    save_model(tmp_path / "model", config, build_model(config, 0).state_dict())
    assert load_model(tmp_path / "model")[1].plugins is not None
    with registries_kept(is_empty=True), pytest.raises(Exception, match="AGFL-CONFIG-219"):
        load_model(tmp_path / "model")
