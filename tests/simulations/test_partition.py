"""A partition deals out every document once, the same way for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ConfigError, DataError
from agfl_models.examples import Row, TextRow, read_rows
from agfl_models.reading.corpora import CORPORA, SECTIONS
from agfl_models.tasks.dataset import split_rows
from agfl_protocol.config.run_config import DataConfig, RunConfig
from agfl_sim import partition as partition_module
from agfl_sim.partition import owner_files, owners_of, partition

Owners = Mapping[str, Sequence[str]]

SOURCES = st.dictionaries(
    st.text("abcd", min_size=1, max_size=4), st.lists(st.text("xyz", min_size=1), min_size=1, max_size=6), min_size=1
)
SEED = st.integers(0, 2**32)


def documents_of(owners: Owners) -> Counter[str]:
    return Counter(document for documents in owners.values() for document in documents)


def config(kind: str, num_owners: int | None) -> DataConfig:
    return DataConfig.model_validate({"partition": kind, "num_owners": num_owners})


@given(SOURCES, SEED, st.data())
def test_natural_owners_are_sources_as_they_are(sources: Owners, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sources)))
    owners = partition(config("natural", count), sources, seed)
    assert len(owners) == count
    assert all(documents == sources[name] for name, documents in owners.items())
    assert list(owners) == sorted(owners)
    assert owners.keys() <= partition(config("natural", len(sources)), sources, seed).keys()
    assert partition(config("natural", None), sources, seed) == sources


@given(SOURCES, SEED, st.data())
def test_grouped_owners_hold_whole_sources(sources: Owners, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sources)))
    tagged = {name: [f"{name}/{i}/{text}" for i, text in enumerate(texts)] for name, texts in sources.items()}
    owners = partition(config("grouped", count), tagged, seed)
    assert len(owners) == count
    assert documents_of(owners) == documents_of(tagged)
    held = [{text.split("/")[0] for text in documents} for documents in owners.values()]
    assert sum(map(len, held)) == len(sources), "no source is divided"
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for documents in owners.values():
        names = list(dict.fromkeys(text.split("/")[0] for text in documents))
        assert documents == [text for name in names for text in tagged[name]], "in the source's own order"


@given(SOURCES, SEED, st.data())
def test_iid_owners_hold_as_many_documents_each(sources: Owners, seed: int, data: st.DataObject) -> None:
    total = documents_of(sources)
    count = data.draw(st.integers(1, total.total()))
    owners = partition(config("iid", count), sources, seed)
    assert documents_of(owners) == total
    sizes = [len(documents) for documents in owners.values()]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1


KINDS = ["natural", "grouped", "iid", "dirichlet", "shards", "lognormal"]


@pytest.mark.parametrize("kind", KINDS)
@given(sources=SOURCES, seed=SEED)
def test_partition_depends_on_the_seed_and_not_on_order(kind: str, sources: Owners, seed: int) -> None:
    count = max(1, len(sources) // 2)  # a shard or two each
    owners = partition(config(kind, count), sources, seed) if sum(map(len, sources.values())) > 1 else {}
    backwards = dict(reversed(list(sources.items())))
    assert not owners or partition(config(kind, count), backwards, seed) == owners


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_deals_otherwise(kind: str) -> None:
    sources = {f"s{i}": [f"{i}-{j}" for j in range(3)] for i in range(30)}
    assert partition(config(kind, 10), sources, 0) != partition(config(kind, 10), sources, 1)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 101])
def test_names_sort_as_numbers(count: int) -> None:
    owners = partition(config("iid", count), {"s": [str(i) for i in range(101)]}, 0)
    assert sorted(owners) == list(owners)
    assert {len(name) for name in owners} == {len("owner-") + len(str(count - 1))}


@pytest.mark.parametrize(
    ("kind", "num_owners", "rule"),
    [
        ("natural", 3, "must be at most 2 for this partition, got 3"),
        ("grouped", 3, "must be at most 2 for this partition, got 3"),
        ("iid", 6, "must be at most 5 for this partition, got 6"),
        ("dirichlet", 6, "must be at most 5 for this partition, got 6"),
        ("shards", 3, "must be at most 2 for this partition, got 3"),
        ("lognormal", 6, "must be at most 5 for this partition, got 6"),
        ("dirichlet", None, "required with data.partition 'dirichlet', got None"),
        ("grouped", None, "required with data.partition 'grouped', got None"),
        ("iid", None, "required with data.partition 'iid', got None"),
    ],
)
def test_more_owners_than_there_are_is_refused(kind: str, num_owners: int | None, rule: str) -> None:
    sources: dict[str, Sequence[str]] = {"a": ["1", "2"], "b": ["3", "4", "5"]}
    with pytest.raises(ConfigError, match=f"data.num_owners: {rule}"):
        partition(config(kind, num_owners), sources, 0)


MODELS = {
    "language_modeling": "{vocab_size: 259, dim: 8, layers: [{type: ff}]}",
    "translation": "{family: encoder_decoder, vocab_size: 259, dim: 8, encoder: {layers: [{type: ff}]}, "
    "layers: [{type: attention, num_heads: 1, cross: true}]}",
    "question_answering": "{family: encoder, vocab_size: 259, dim: 8, head: {type: span}, layers: [{type: ff}]}",
}
MODELS["text_classification"] = (
    "{family: encoder, vocab_size: 259, dim: 8, head: {type: classification, num_classes: 6}, layers: [{type: ff}]}"
)
SETTINGS = {"text_classification": f", labels: [{', '.join(SECTIONS)}]"}
MODELS["summarization"] = MODELS["translation"]


SMALLEST = "docstring_summaries"  # how rows are dealt does not ask whose they are


@pytest.mark.parametrize(
    ("kind", "name"), [*(("natural", name) for name in CORPORA), ("grouped", SMALLEST), ("iid", SMALLEST)]
)
def test_shipped_corpus_is_written_whole_and_the_same_each_time(
    tmp_path: Path, run_config: Callable[..., RunConfig], name: str, kind: str
) -> None:
    task = CORPORA[name].task
    config = run_config(
        f"task={{type: {task}{SETTINGS.get(task, '')}}}",
        f"model={MODELS[task]}",
        f"data.partition={kind}",
        f"data.num_owners={'null' if kind == 'natural' else 5}",
    )
    first = owner_files(config, tmp_path / "a")
    sources = CORPORA[name].load()
    if kind == "natural":
        assert {path.stem for path in first} == sources.keys(), "nothing is drawn"
    else:
        again = owner_files(config, tmp_path / "b")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
        assert [path.name for path in first] == [f"owner-{i}.jsonl" for i in range(5)]
    written: Counter[Row] = Counter(row for path in first for row in read_rows(path, config.task.row))
    assert written == Counter(row for rows in sources.values() for row in rows)


def test_own_folder_is_taken_as_it_is(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_owners(3)
    (folder / "README.md").write_text("not an owner")
    found = owner_files(run_config(f"data.path={folder}"), tmp_path / "unused")
    assert [path.stem for path in found] == ["owner-00", "owner-01", "owner-02"]
    assert not (tmp_path / "unused").exists()


def test_own_files_in_other_forms_become_rows_with_the_tasks_columns(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "bob.tsv").write_text("id\tcontent\n1\tone\n2\ttwo\n")
    (folder / "al.jsonl").write_text('{"content": "three"}')
    paths = owner_files(run_config(f"data.path={folder}", "data.columns={text: content}"), tmp_path / "owners")
    assert [(path.parent.name, path.stem) for path in paths] == [("owners", "al"), ("owners", "bob")]
    assert [[row.text for row in read_rows(path, TextRow)] for path in paths] == [["three"], ["one", "two"]]
    with pytest.raises(DataError, match=rf"^data: {folder / 'al.jsonl'}: line 1: .*got 'content'.*AGFL-DATA-007"):
        owner_files(run_config(f"data.path={folder}", "data.columns={text: x}"), tmp_path / "owners")


def test_hidden_and_empty_owners_are_left_out_and_few_rows_are_told(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_owners(3)
    (folder / "._owner-00.jsonl").write_bytes(b"\0\5\26")
    config = run_config(f"data.path={folder}")
    whole = owners_of(config, tmp_path / "written")
    assert whole.files == sorted(folder.glob("owner-*.jsonl")), "read where they are"
    assert whole.notes == (
        f"data     3 owners in {folder}: 3 files, 36 rows, columns text, "
        f"{sum(len(path.read_text()) for path in whole.files):,} characters, utf-8; {_train(config, whole)}",
    )
    (folder / "nobody.jsonl").write_text("")
    (folder / "blank.jsonl").write_text('{"text": " "}\n')
    (folder / "zed.csv").write_text("text;id\none;1\ntwo;2\n", encoding="utf-8-sig")
    some = owners_of(config, tmp_path / "written")
    assert [path.name for path in some.write()] == [f"owner-0{i}.jsonl" for i in range(3)] + ["zed.jsonl"]
    assert "left out, since they hold no text: blank, nobody" in some.notes
    assert [line for line in some.notes if "zed (2): too few to learn from" in line]
    for path in folder.glob("*.*"):
        if path.stem not in ("nobody", "blank"):
            path.unlink()
    with pytest.raises(DataError, match=r"blank\.jsonl: .*got 1 without.*AGFL-DATA-087"):
        owners_of(config, tmp_path / "none")


def _train(config: RunConfig, owners: partition_module.Owners) -> str:
    splits = [split_rows(read_rows(path, TextRow), config.task.validation_fraction) for path in owners.files]
    return f"{sum(len(train) for train, _ in splits)} train, {sum(len(held_out) for _, held_out in splits)} held out"


@pytest.mark.parametrize("name", ["dan.parquet", "dan.docx", "dan", "dan/text.xlsx"])
def test_owner_whose_file_cannot_be_read_is_named(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = make_owners(3)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=rf"^data: {folder / name}: "):
        owners_of(run_config(f"data.path={folder}"), tmp_path / "owners")


def test_owner_with_two_files_is_refused(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    for name in ("al.jsonl", "al.txt"):
        (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(DataError, match=r"^data\.path: .*: .*got .*al\.jsonl and .*al\.txt.*AGFL-DATA-035"):
        owner_files(run_config(f"data.path={tmp_path}"), tmp_path / "owners")


def test_corpus_of_another_task_is_refused(run_config: Callable[..., RunConfig]) -> None:
    assert run_config("data.corpus=shakespeare_roles").data.corpus == "shakespeare_roles"
    for name in ("home_assistant_en_de", "homer"):
        rule = rf"data\.corpus: .*got '{name}' \[AGFL-CONFIG-013\]$"
        with pytest.raises(ConfigError, match=rule):
            run_config(f"data.corpus={name}")


def test_folder_without_owners_is_named(tmp_path: Path, run_config: Callable[..., RunConfig]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    rules = {
        "none": "no such folder .AGFL-DATA-084",
        "file": "must be a folder, got a file .AGFL-DATA-084",
        "empty": r".*AGFL-DATA-085",
    }
    for name, rule in rules.items():
        folder = tmp_path / name
        with pytest.raises(DataError, match=rf"^data\.path: {folder}: {rule}"):
            owner_files(run_config(f"data.path={folder}"), tmp_path / "unused")


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


def test_a_file_whose_name_is_no_owners_is_named(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "my owners"
    folder.mkdir()
    (folder / "Zo\u00eb M\u00fcller.jsonl").write_text('{"text": "To be"}\n')
    with pytest.raises(
        DataError, match=r"my owners/Zo\u00eb M\u00fcller\.jsonl: must be .*\(Zoe-Muller would do\).*AGFL-DATA-086"
    ):
        owner_files(run_config(f"data.path={folder}"), tmp_path / "exported")


def test_files_that_are_there_are_kept_and_others_never_replaced(
    tmp_path: Path, run_config: Callable[..., RunConfig]
) -> None:
    folder = tmp_path / "owners"
    six = owner_files(run_config("data.num_owners=6"), folder)
    assert {path.stat().st_mode & 0o777 for path in six} == {0o600}
    times = [path.stat().st_mtime_ns for path in six]
    six[2].replace(folder / f".writing-{six[2].name}")
    assert owner_files(run_config("data.num_owners=6"), folder) == six, "as after kill -9 while one of them was written"
    assert [path.stat().st_mtime_ns for i, path in enumerate(six) if i != 2] == times[:2] + times[3:]
    before = content_of(folder)
    four = owners_of(run_config("data.num_owners=4"), folder)
    for is_new in (True, False):
        with pytest.raises(DataError, match=rf"^owners: {folder / 'owner-0.jsonl'}: must be as the run's seed"):
            four.write(is_new=is_new)
    assert content_of(folder) == before


def test_folder_with_somebody_elses_files_is_refused_but_for_a_run_that_goes_on(
    tmp_path: Path, run_config: Callable[..., RunConfig]
) -> None:
    (tmp_path / "owners").mkdir()
    (tmp_path / "owners" / "mine.jsonl").write_text("{}")
    owners = owners_of(run_config(), tmp_path / "owners")
    with pytest.raises(DataError, match=r"^owners: .*: .*got one with mine\.jsonl.*AGFL-DATA-082"):
        owners.write()
    assert [path.name for path in (tmp_path / "owners").iterdir()] == ["mine.jsonl"]
    assert len(owners.write(is_new=False)) == 3
