"""agfl-simulate as a person types it: every refusal is one line, and a run survives whatever ends it."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from tests.commands import Started, run

from agfl_models import machine
from agfl_server.run.run_folder import RunFolder
from agfl_server.run.sittings import read_sittings
from agfl_sim.cli import main, new_folder

COMMAND = Path(sys.executable).parent / "agfl-simulate"
CONFIG = """
seed: 3
num_rounds: 12
task: {type: language_modeling, sequence_length: 32}
model: {vocab_size: 259, dim: 16, layers: [{type: attention, num_heads: 2}, {type: ff, hidden_dim: 16}]}
training: {batch_size: 4, local_steps: 4}
aggregation: {type: plain, min_cohort: 2, cohort_size: 3, server_optimizer: {type: fedadam}}
evaluation: {every: 3, max_examples: 8}
data: {partition: natural, num_owners: 4}
"""
Simulate = Callable[..., subprocess.CompletedProcess[str]]


def start(folder: Path, *arguments: str | Path) -> Started:
    return Started("agfl-simulate", *arguments, cwd=folder)


def finish(process: Started) -> subprocess.CompletedProcess[str]:
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in output + errors, errors
    return subprocess.CompletedProcess(process.args, process.wait(), output, errors)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small.yaml`, in which one run is finished already: `whole`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(CONFIG)
    done = finish(start(folder, "small.yaml", "--output", "whole"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def simulate(home: Path) -> Simulate:
    return lambda *arguments: finish(start(home, *arguments))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Equal bit for bit, but for how long it took."""
    for name in ("model/model.safetensors", "model/config.yaml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    with_zero = [[{**row, "seconds": 0} for row in rows_of(path)] for path in (folder, whole)]
    assert with_zero[0] == with_zero[1]


def end_after_rounds(number: signal.Signals, count: int, home: Path, folder: str, *arguments: str) -> str:
    """Start a run, send it a signal while it is under way (`count` rows written, rounds left); return its output."""
    process, metrics = start(home, "small.yaml", "--output", folder, *arguments), home / folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended before its time"
        time.sleep(0.005)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == (-number if number == signal.SIGKILL else 130)
    assert len(rows_of(home / folder)) < 13
    return done.stdout


def test_finished_run_says_what_it_did_and_where(home: Path) -> None:
    assert [row["round"] for row in rows_of(home / "whole")] == list(range(13))
    assert "Should I join?" not in (home / "whole" / "report.html").read_text()
    assert not (home / "whole" / "baselines.jsonl").exists()
    assert rows_of(home / "whole")[-1]["train/loss"] < rows_of(home / "whole")[1]["train/loss"]


def test_without_arguments_the_shipped_run_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    layers = "model.layers=[{type: ff, hidden_dim: 8}]"
    tiny = ("num_rounds=1", "model.dim=8", layers, "training.local_steps=1", "data.num_owners=3")
    done = finish(start(tmp_path, *(part for value in tiny for part in ("--set", value))))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("language_modeling-20")
    assert f"output in runs/{folder.name}\n" in done.stdout
    assert "aggregation is plain" not in done.stdout
    assert "left open" not in done.stdout
    assert [row["clients"] for row in rows_of(folder)] == [0, 3]


TO_NEW = ["small.yaml", "--output", "new"]
REFUSALS: list[tuple[list[str], str]] = [
    (
        ["langauge_modeling"],
        "CONFIG: no shipped configuration 'langauge_modeling' (did you mean 'language_modeling'?) [AGFL-CONFIG-085]",
    ),
    (["none.yaml"], "none.yaml: no such file [AGFL-CONFIG-003]"),
    ([*TO_NEW, "--set", "modell.dim=3"], "--set: unknown key 'modell' (did you mean 'model'?) [AGFL-CONFIG-001]"),
    ([*TO_NEW, "--set", "num_rounds=0"], "--set: num_rounds: Input should be greater than 0, got 0 [AGFL-CONFIG-011]"),
    (
        [*TO_NEW, "--set", "seed"],
        "--set: must be KEY=VALUE (as in training.local_steps=5), got 'seed' [AGFL-CONFIG-145]",
    ),
    ([*TO_NEW, "--engine", "inlin"], "--engine: unknown engine 'inlin' (did you mean 'inline'?) [AGFL-CONFIG-083]"),
    (
        ["small.yaml", "--output", "[/x]", "--resume"],
        "--resume: [/x]/checkpoints: must hold a checkpoint, found none [AGFL-CHECKPOINT-022]",
    ),
    (["small.yaml", "--resume"], "--resume: needs --output, the folder of the run to go on with [AGFL-CONFIG-084]"),
    ([*TO_NEW, "--resume"], "--resume: new/checkpoints: must hold a checkpoint, found none [AGFL-CHECKPOINT-022]"),
    ([*TO_NEW, "--set", "data.path=none"], "data.path: none: no such folder [AGFL-DATA-084]"),
    (
        [*TO_NEW, "--set", "data.num_owners=999"],
        "data.num_owners: must be at most 608 for this partition, got 999 [AGFL-CONFIG-211]",
    ),
]


@pytest.mark.parametrize(("arguments", "line"), REFUSALS)
def test_refusal_is_one_line_and_exit_code_2(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    """In this process, since it only takes long to start."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["agfl-simulate", *arguments])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (home / "new" / "metrics.jsonl").exists()


def test_refusal_of_the_command_itself(simulate: Simulate) -> None:
    done = simulate("langauge_modeling")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {REFUSALS[0][1]}\n")


def test_output_that_cannot_be_written_is_one_line(simulate: Simulate) -> None:
    done = simulate("small.yaml", "--output", "small.yaml/x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = simulate("small.yaml", "--output", "small.yaml")
    assert (done.returncode, done.stderr) == (2, "error: small.yaml: must be a folder, is a file [AGFL-CONFIG-077]\n")


def test_existing_run_is_refused_and_untouched(simulate: Simulate, home: Path) -> None:
    before = {path: path.read_bytes() for path in (home / "whole").rglob("*") if path.is_file()}
    done = simulate("small.yaml", "--output", "whole", "--set", "seed=4")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "whole: must be a folder without a run; continue the run in it with --resume" in done.stderr
    assert before == {path: path.read_bytes() for path in (home / "whole").rglob("*") if path.is_file()}


REFUSED_RUNS = [
    ["--output", "whole", "--resume", "--set", "seed=4"],
    ["--output", "whole"],
    ["--output", "fresh", "--resume"],
    ["--output", "fresh", "--set", "aggregation.type=secure", "--set", "data.num_owners=1"],
    ["--output", "fresh", "--set", "data.num_owners=1"],
    ["--output", "fresh", "--set", "aggregation.min_cohort=5"],
    ["--output", "fresh", "--set", "search={slate: [configured, nobody]}"],
    [
        *("--output", "fresh", "--set", "model.vocab_size=300"),
        *("--set", "tokenizer={type: bpe, vocab_size: 300, text: nowhere.txt}"),
    ],
    ["--output", "edited"],
    ["--export-owners", "edited/owners"],
    ["--export-owners", "fresh", "--resume"],
    ["--export-owners", "fresh", "--output", "beside"],
    ["--export-owners", "fresh", "--engine", "ray"],
]


@pytest.mark.parametrize("arguments", REFUSED_RUNS, ids=" ".join)
def test_refused_run_writes_nothing(simulate: Simulate, home: Path, arguments: list[str]) -> None:
    edited = home / "edited" / "owners" / "owner-1.jsonl"
    edited.parent.mkdir(parents=True, exist_ok=True)
    edited.write_text('{"text": "my own words"}\n')
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = simulate("small.yaml", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert not (home / "fresh").exists()


def test_a_run_goes_on_with_its_owners_text_alone(simulate: Simulate, home: Path) -> None:
    dealt = ("small.yaml", "--output", "dealt", "--set", "data.partition=grouped", "--set", "num_rounds=1")
    done = simulate(*dealt)
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = simulate(*dealt, "--resume", "--set", "data.num_owners=6")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "got other content" in done.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_folder_serves_one_run_at_a_time(simulate: Simulate, home: Path) -> None:
    with RunFolder(home / "busy").hold():
        done = simulate("small.yaml", "--output", "busy")
    assert done.returncode == 2
    assert done.stderr == "error: busy: must serve one run at a time, and one is running already [AGFL-CONFIG-076]\n"
    assert not (home / "busy" / "config.yaml").exists()


def test_who_is_refused_a_run_under_way_has_changed_nothing_of_it(simulate: Simulate, home: Path) -> None:
    shutil.copytree(home / "whole", home / "taken")
    before = {path: path.read_bytes() for path in (home / "taken").rglob("*") if path.is_file()}
    with RunFolder(home / "taken").hold():
        done = simulate("small.yaml", "--output", "taken", "--resume", "--set", "num_rounds=13")
    assert done.returncode == 2
    assert done.stderr == "error: taken: must serve one run at a time, and one is running already [AGFL-CONFIG-076]\n"
    assert {path: path.read_bytes() for path in (home / "taken").rglob("*") if path.is_file()} == before


def test_exported_owners_give_the_same_model(simulate: Simulate, home: Path) -> None:
    done = simulate("small.yaml", "--export-owners", "exported")
    assert (done.returncode, done.stdout) == (0, "4 owners in exported\n")
    names = [
        sorted(path.name for path in folder.iterdir()) for folder in (home / "exported", home / "whole" / "owners")
    ]
    assert names[0] == names[1]
    again = simulate("small.yaml", "--set", "data.path=exported", "--export-owners", "again")
    found, written = again.stdout.splitlines()
    assert "4 owners in exported: 4 files, " in found
    assert (written, (home / "again").exists()) == ("4 owners in exported", False)
    done = simulate("small.yaml", "--set", "data.path=exported", "--output", "from-exported")
    assert done.returncode == 0, done.stderr
    assert_same_run(home / "from-exported", home / "whole")


def test_what_an_export_leaves_out_is_said(simulate: Simulate, home: Path) -> None:
    (home / "texts").mkdir()
    for name in ("alice", "bob", "carol"):
        (home / "texts" / f"{name}.txt").write_text("a line\n\n" * 20)
    (home / "texts" / "dave.txt").touch()
    (home / "texts" / "README").write_text("about them")
    done = simulate("small.yaml", "--set", "data.path=texts", "--export-owners", "written")
    assert done.stdout.splitlines()[-1] == "3 owners in written"
    assert "dave" in done.stdout
    assert "not read: texts/README" in done.stdout


def test_a_folder_with_another_configuration_is_refused_and_untouched(simulate: Simulate, home: Path) -> None:
    (home / "project").mkdir()
    (home / "project" / "config.yaml").write_bytes(before := (home / "small.yaml").read_bytes())
    done = simulate("project/config.yaml", "--output", "project")
    line = (
        "project: must be a folder for this run alone, holds a config.yaml that no run of ours wrote [AGFL-CONFIG-079]"
    )
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")
    assert [(path.name, path.read_bytes()) for path in (home / "project").iterdir()] == [("config.yaml", before)]


def test_run_that_was_terminated_and_then_killed_goes_on_to_the_same_end(simulate: Simulate, home: Path) -> None:
    end_after_rounds(signal.SIGTERM, 2, home, "killed")
    end_after_rounds(signal.SIGKILL, 6, home, "killed", "--resume")
    done = simulate("small.yaml", "--output", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(home / "killed", home / "whole")
    assert [one.outcome for one in read_sittings(home / "killed")] == ["interrupted", None, "finished"]
    assert "<dt>Total time</dt><dd>at least " in (home / "killed" / "report.html").read_text()


def test_interrupted_run_says_how_to_go_on_and_does(simulate: Simulate, home: Path) -> None:
    """The command is whole: with the file, the overrides, and quotes where the shell needs them."""
    output = end_after_rounds(
        signal.SIGINT, 3, home, "stopped in [b]", "--set", "evaluation={every: 3, max_examples: 8}"
    )
    (line,) = [line for line in output.splitlines() if line.startswith("stopped; ")]
    command = shlex.split(line.removeprefix("stopped; go on with: "))
    assert command[:2] == ["agfl-simulate", "small.yaml"]
    assert command[-1] == "--resume"
    assert "evaluation={every: 3, max_examples: 8}" in command
    done = simulate(*command[1:])
    assert done.returncode == 0, done.stderr
    assert_same_run(home / "stopped in [b]", home / "whole")
    assert "output in stopped in [b]\n" in done.stdout
    assert "report   stopped in [b]/report.html\n" in done.stdout


def test_run_that_was_interrupted_before_its_first_checkpoint_says_how_to_begin_again(
    simulate: Simulate, home: Path
) -> None:
    process = start(home, "small.yaml", "--output", "early", "--set", "data.num_owners=400")
    while not (home / "early" / "owners").exists():
        assert process.poll() is None, "it ended before its time"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130
    assert done.stdout.endswith("go on with: agfl-simulate small.yaml --output early --set data.num_owners=400\n")


def test_run_without_anything_to_evaluate_on_says_so(simulate: Simulate, home: Path) -> None:
    (home / "single").mkdir()
    for name in ("al", "bo", "cy"):
        (home / "single" / f"{name}.txt").write_text(f"the only document of {name}")
    done = simulate("small.yaml", "--output", "unmeasured", "--set", "data.path=single", "--set", "num_rounds=1")
    assert done.returncode == 0, done.stderr
    assert "model of round 1: no owner has anything to evaluate on\n" in done.stdout


def test_a_run_whose_report_cannot_be_written_is_done_all_the_same(simulate: Simulate, home: Path) -> None:
    (home / "un reported" / ".writing-report.html").mkdir(parents=True)
    done = simulate("small.yaml", "--output", "un reported", "--set", "num_rounds=1")
    assert done.returncode == 0, done.stderr
    assert "(agfl-model generate 'un reported', or agfl-model serve 'un reported')" in done.stdout
    assert "no report: un reported/report.html: cannot be written: " in done.stdout
    assert (home / "un reported" / "model" / "model.safetensors").exists()


def test_help_waits_for_neither_torch_nor_flower() -> None:
    code = (
        "import sys; from agfl_sim.cli import main; sys.argv = ['agfl-simulate', '--help']\n"
        "try: main()\n"
        "finally: print('LOADED', {'torch', 'flwr', 'ray', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Run the federation that CONFIG describes" in done.stdout
    assert "LOADED set()" in done.stdout


def test_a_run_that_learns_its_tokenizer_says_so_and_its_model_writes(home: Path, simulate: Simulate) -> None:
    bpe = "tokenizer={type: bpe, vocab_size: 300}"
    options = [option for value in ("model.vocab_size=300", bpe, "num_rounds=1") for option in ("--set", value)]
    done = simulate("small.yaml", "--output", "bpe", *options)
    assert done.returncode == 0, done.stderr
    assert "tokenizer: 41 of 41 merges\n" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "training.optimizer" in line]
    assert "{type: sgd, lr: 0.5}" in line, "what the file leaves open is said"
    assert "AdamW's" in line
    written = run("agfl-model", "generate", home / "bpe", "To be", "--max-tokens", "20")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("To be")


def test_runs_of_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Frozen:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agfl_sim.cli.datetime", Frozen)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder("run"), range(8)))
    names = [f"run-20260102-030405{end}" for end in ("", *(f"-{number}" for number in range(2, 9)))]
    assert sorted(path.name for path in folders) == sorted(names)


def test_refused_run_leaves_no_folder_of_its_own(home: Path, tmp_path: Path) -> None:
    small = (home / "small.yaml").read_text()
    (tmp_path / "small.yaml").write_text(small)
    done = finish(start(tmp_path, "small.yaml", "--set", "aggregation.min_cohort=9"))
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []


def test_the_kind_of_machine_stands_beside_the_result(home: Path, tmp_path: Path) -> None:
    """Also of owners whose files lie elsewhere, so that nothing else makes the folder."""
    (sitting,) = read_sittings(home / "whole")
    assert (sitting.machine, sitting.outcome) == (machine.kind(), "finished")
    assert sitting.command == ("agfl-simulate", "small.yaml", "--output", "whole")
    arguments = ("small.yaml", "--set", f"data.path={home / 'whole' / 'owners'}", "--set", "num_rounds=1")
    done = finish(start(home, *arguments, "--output", tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert [one.machine for one in read_sittings(tmp_path / "new")] == [machine.kind()]
