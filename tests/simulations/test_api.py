"""`import agfl` waits for nothing heavy, and runs, shows and uses what the commands do."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from rich.console import Console
from tests.commands import run
from tests.tiny_federation import TINY, WORDS
from torch import nn

import agfl
from agfl_models.errors import AgflError, ConfigError, DataError
from agfl_models.inference import open_model
from agfl_models.web.asgi_server import AsgiServer
from agfl_protocol.config.run_config import load_run_config
from agfl_server.rounds.observer import Row
from agfl_sim.progress import ProgressObserver

HEAVY = {"torch", "flwr", "numpy", "pydantic", "cryptography", "yaml", "rich"}
OWNERS = {name: [f"{name} {word} " * 4 for word in WORDS] for name in ("ann", "bob", "cy")}


class Watcher(agfl.Callback):
    """Keeps what a run tells."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[Row] = []
        self.models: list[Path] = []
        self._stop_after = stop_after

    def saved(self, rows: Any) -> None:
        self.rows += rows
        if len(self.rows) == self._stop_after:
            raise KeyboardInterrupt

    def finished(self, model: Path) -> None:
        self.models.append(model)


def norm_of(model: nn.Module, round_number: int) -> Mapping[str, float]:
    """Some number of the model, and the round."""
    return {"norm": sum(float(p.detach().norm()) for p in model.parameters()), "round": round_number}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture(scope="module")
def history(home: Path, watcher: Watcher) -> agfl.History:
    out = home / "whole"
    return agfl.simulate(
        home / "tiny.yaml", owners=OWNERS, out=out, callbacks=[watcher], evaluate=norm_of, progress=False
    )


def without_seconds(rows: Any) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in rows]


def bits(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_importing_it_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, time\nbegun = time.process_time()\nimport agfl\nseconds = time.process_time() - begun\n"
        f"print(seconds, sorted({HEAVY!r} & set(sys.modules)), set(agfl.__all__) <= set(dir(agfl)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    seconds, _, rest = done.stdout.partition(" ")
    assert rest == "[] True\n"
    assert float(seconds) < 0.3


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in agfl.__all__:
        assert (getattr(agfl, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="'agfl' has no attribute 'nobody'"):
        importlib.import_module("agfl").nobody  # noqa: B018


def test_it_is_the_run_of_the_command(history: agfl.History, home: Path) -> None:
    """With owners in memory, and with the same owners as files: the same bits."""
    done = run("agfl-simulate", home / "tiny.yaml", "--set", f"data.path={home / 'whole' / 'owners'}", cwd=home)
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs").iterdir()
    assert bits(folder) == bits(history.folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{key: row[key] for key in row if not key.startswith("central/")} for row in history.rows]
    assert without_seconds(plain) == without_seconds(rows)


def test_a_history_has_the_rows_of_the_run_and_its_best(history: agfl.History, watcher: Watcher) -> None:
    assert [row["round"] for row in history.rows] == [0, 1, 2, 3]
    assert watcher.rows == history.rows
    assert watcher.models == [history.model_path]
    name = history.config.task.main_metric.name
    measured = [value for row in history.rows if (value := row[name]) is not None]
    assert history.best[name] == min(measured), "fewer bits per byte are better"
    assert agfl.History.read(str(history.folder)).rows == history.rows
    assert repr(history).startswith(f"History('{history.folder}': rounds 3 of 3, bits per byte ")


def test_a_notebook_shows_curves_and_nothing_from_elsewhere(history: agfl.History) -> None:
    shown = history._repr_html_()
    assert shown.count("<svg") == 2
    assert "bits per byte" in shown
    assert not [word for word in ("<script", "http://www.example", "url(", "@import") if word in shown]
    rules = shown.split("<style>")[1].split("</style>")[0].strip()
    assert rules.startswith(".agfl-history {"), "no rule reaches the rest of the notebook"
    assert rules.count("{") == rules.count("}")


def test_a_notebook_without_widgets_shows_lines_and_no_warnings(
    history: agfl.History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    console = Console(force_jupyter=True)
    with ProgressObserver(console, history.config.task.main_metric) as observer:
        observer.round_started(1, 3, 3)
        observer.client_finished("ann")
    assert console.is_jupyter


def test_a_table_needs_pandas_and_says_so(history: agfl.History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"^to_pandas: .*AGFL-CONFIG-197"):
        history.to_pandas()


def test_a_table_has_a_row_a_round(history: agfl.History) -> None:
    pytest.importorskip("pandas")
    table = history.to_pandas()
    assert list(table.index) == [0, 1, 2, 3]
    assert table["train/loss"].tolist()[1:] == [row["train/loss"] for row in history.rows[1:]]


@pytest.mark.parametrize("form", ["mapping", "config", "settings"])
def test_a_configuration_may_have_any_form(history: agfl.History, home: Path, tmp_path: Path, form: str) -> None:
    content = yaml.safe_load(TINY)
    config: Any = {"mapping": content, "config": load_run_config(home / "tiny.yaml"), "settings": dict(content, seed=1)}
    settings = {"seed": 7} if form == "settings" else None
    found = agfl.simulate(config[form], owners=OWNERS, settings=settings, out=tmp_path / "out", progress=False)
    assert bits(found.folder) == bits(history.folder)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(history: agfl.History, home: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"out": tmp_path / "out", "evaluate": norm_of, "progress": False}
    stopped = Watcher(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        agfl.simulate(home / "tiny.yaml", owners=OWNERS, callbacks=[stopped], **arguments)
    rest = Watcher()
    found = agfl.simulate(home / "tiny.yaml", resume=True, callbacks=[rest], **arguments)
    assert bits(found.folder) == bits(history.folder)
    assert without_seconds(found.rows) == without_seconds(history.rows)
    assert [row["round"] for row in stopped.rows] == [0, 1]
    assert [row["round"] for row in rest.rows] == [2, 3]


def test_a_central_evaluation_joins_the_row_of_the_model_that_it_saw(history: agfl.History) -> None:
    seen = [row["round"] for row in history.rows if "central/norm" in row]
    assert seen == [0, 2, 3], "the rounds whose model is evaluated"
    assert all(row["central/round"] == row["round"] for row in history.rows if "central/round" in row)
    assert history.rows[-1]["central/norm"] == norm_of(history.model.module, 3)["norm"]


def broken(model: nn.Module, round_number: int) -> Mapping[str, float]:
    raise RuntimeError("no data")


def test_a_central_evaluation_that_fails_is_named(home: Path, tmp_path: Path) -> None:
    lines = {
        broken: r"^evaluate: broken: .*AGFL-CONFIG-194",
        (
            lambda model, number: 3
        ): r"^evaluate: .*<lambda>: must return a mapping from names to numbers, got int .AGFL-CONFIG-195",
        (lambda model, number: {"a": "b"}): r"numbers, got 'a': str .AGFL-CONFIG-196",
    }
    for i, (function, line) in enumerate(lines.items()):
        evaluate: Any = function
        with pytest.raises(ConfigError, match=line):
            agfl.simulate(home / "tiny.yaml", owners=OWNERS, out=tmp_path / str(i), evaluate=evaluate, progress=False)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"config": "langauge_modeling"}, r"no shipped configuration 'langauge_modeling' \(did you mean"),
    ({"settings": {"num_rounds": 0}}, r"num_rounds: .*got 0.*AGFL-CONFIG-011"),
    ({"engine": "inlin"}, r"^engine: unknown engine 'inlin' \(did you mean 'inline'\?\).*AGFL-CONFIG-083"),
    ({"resume": True}, r"^resume: .*AGFL-CONFIG-199"),
    ({"owners": {}}, r"^owners: .*AGFL-DATA-075"),
    ({"owners": {"a b": ["x"]}}, r"^owners: a name must match .*, got 'a b' \(a-b would do\).*AGFL-DATA-076"),
    ({"owners": {"ann": []}}, r"^owners: ann: .*AGFL-DATA-077"),
    ({"owners": {"ann": [{"txt": "x"}]}}, r"^owners: ann: row 1: text: .*AGFL-DATA-078"),
    ({"owners": {"ann": ["x"]}}, r"aggregation\.min_cohort: must be at most 1"),
]


@pytest.mark.parametrize(("arguments", "line"), REFUSED)
def test_refusal_is_one_line_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AgflError, match=line) as refused:
        agfl.simulate(**{"config": home / "tiny.yaml", "progress": False, **arguments})
    assert "\n" not in str(refused.value)
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_a_folder_without_a_run_has_no_history(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"AGFL-DATA-073"):
        agfl.History.read(tmp_path)


def test_a_model_writes_what_the_command_writes_and_is_kept(history: agfl.History, tmp_path: Path) -> None:
    model = agfl.load(history.folder)
    text = model.generate("The sea", max_new_tokens=20, seed=3)
    done = run("agfl-model", "generate", history.folder, "The sea", "--max-tokens", "20", "--seed", "3")
    assert done.stdout == f"The sea{text}\n"
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path / "kept")
    again = agfl.Model.from_pretrained(tmp_path / "kept")
    pairs = zip(model.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert repr(again).startswith(f"Model('{tmp_path / 'kept'}': language_modeling, ")


def test_a_model_does_what_its_task_is(history: agfl.History) -> None:
    user, _ = open_model(history.folder)
    assert history.model.task.command == "generate"
    assert sum(p.numel() for p in user.model.parameters()) == sum(p.numel() for p in history.model.module.parameters())
    with pytest.raises(ConfigError, match=r"got one for language_modeling; use generate.*AGFL-CONFIG-198"):
        history.model.translate("The sea")


def test_its_names_are_those_of_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    shown = [line.removeprefix("::: agfl.") for line in page.splitlines() if line.startswith("::: agfl.")]
    assert sorted(shown) == sorted(agfl.__all__)


def test_serving_answers_and_ends_with_an_interrupt_but_not_the_process(
    history: agfl.History, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []

    def ask_and_interrupt(server: AsgiServer) -> None:
        answers.append(httpx.get(f"http://127.0.0.1:{server.port}/v1/model").json()["task"]["type"])
        raise KeyboardInterrupt

    monkeypatch.setattr(AsgiServer, "wait", ask_and_interrupt)
    agfl.serve(history.folder, port=0)
    assert answers == ["language_modeling"]
