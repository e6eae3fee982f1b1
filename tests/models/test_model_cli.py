"""agfl-model as a person runs it: a real process, its output and its exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.commands import Started, run
from typer.testing import CliRunner

from agfl_models import AutoGenModel
from agfl_models.cli import app
from agfl_models.errors import AgflError
from agfl_models.examples import write_rows
from agfl_models.files.store import save_model
from agfl_models.inference import Answerer, Classifier, Continuer, Rewriter, open_model
from agfl_models.metrics.bleu import bleu_signature
from agfl_models.metrics.chrf import chrf_signature
from agfl_models.tasks.evaluation import evaluate_rows
from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.translation import TranslationConfig, TranslationRow

COMMAND = Path(sys.executable).with_name("agfl-model")
ENVIRONMENT = {"COLUMNS": "120", "PYTHONUTF8": "1", "TERM": "dumb"}
LINES = ["the cat", "", "Grüße 😀 there", "x y"]


ENCODER_DECODER = {
    "family": "encoder_decoder",
    "vocab_size": 259,
    "dim": 16,
    "encoder": {"layers": [{"type": "rnn"}]},
    "layers": [{"type": "attention", "cross": True}],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = AutoGenModel({"vocab_size": 259, "dim": 16, "layers": [{"type": "attention"}, {"type": "ff"}]}, seed=0)
    task = LanguageModelingConfig(type="language_modeling")
    save_model(folder / "model", model.config, model.state_dict(), task)
    return folder


def agfl_model(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("agfl-model", *arguments, env=ENVIRONMENT)


def written(*arguments: str | Path, given: str = "", said: str = "") -> str:
    """Return what a command writes, in this process, since a new one takes seconds; `said`: on stderr."""
    result = CliRunner(env=ENVIRONMENT).invoke(app, [str(argument) for argument in arguments], input=given.encode())
    assert result.exception is None, result.exception
    assert result.stderr == said
    return result.stdout_bytes.decode()  # `stdout` takes a carriage return, which a model may write, for a line's end


def refusal(*arguments: str | Path, given: bytes = b"") -> str:
    """Return the line that a command would print before it exits with code 2."""
    result = CliRunner(env=ENVIRONMENT).invoke(app, [str(argument) for argument in arguments], input=given)
    assert isinstance(result.exception, AgflError), result.exception
    assert result.stdout == ""
    return result.exception.sentence


def test_describe_shows_parts_and_totals(run_folder: Path) -> None:
    result = agfl_model("describe", run_folder, "--context-length", "10")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {cells[1].strip(): cells for line in result.stdout.splitlines() if len(cells := line.split("│")) == 6}
    # 16 * 64 attention weights; 3 * 16 * 48 of SwiGLU; 16 for each of three norms.
    assert [cell.strip() for cell in rows["layers.0"][3:5]] == ["1,024", "2,688"]
    assert [cell.strip() for cell in rows["layers.1"][3:5]] == ["2,304", "4,608"]
    assert [cell.strip() for cell in rows["total"][3:5]] == ["7,520", "15,584"]
    found = json.loads(written("describe", run_folder, "--context-length", "10", "--json"))
    assert (found["parameters"], found["flops_per_token"], found["task"]) == (7520, 15584, "language_modeling")
    assert {part["name"]: part["parameters"] for part in found["parts"]}["layers.1"] == 2304


def test_describe_shows_the_encoder(tmp_path: Path) -> None:
    model = AutoGenModel(ENCODER_DECODER, seed=0)
    save_model(tmp_path, model.config, model.state_dict(), TranslationConfig(type="translation"))
    result = agfl_model("describe", tmp_path, "--context-length", "10")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {cells[1].strip(): cells for line in result.stdout.splitlines() if len(cells := line.split("│")) == 6}
    # A GRU each way, 3 * 16 * 32 weights and 96 biases, and a projection of 32 * 16; q, k, v and output of 16 * 16.
    assert [cell.strip() for cell in rows["encoder.layers.0"][3:5]] == ["3,776", "7,168"]
    assert [cell.strip() for cell in rows["encoder.norm"][3:5]] == ["16", "0"]
    assert [cell.strip() for cell in rows["layers.0"][3:5]] == ["1,024", "2,688"]


@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_a_text_from_anywhere_is_written_as_the_model_does(
    command: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = model_folders[command]
    rewriter, _ = open_model(folder)
    assert isinstance(rewriter, Rewriter)
    expected = rewriter.write(LINES, rewriter.decoding({}))
    assert written(command, folder, LINES[0]) == expected[0] + "\n"
    lines = "".join(re.sub(r"[\r\n]+", " ", text) + "\n" for text in expected)
    assert lines.count("\n") == len(LINES)
    (tmp_path / "texts.txt").write_text("\n".join(LINES))
    assert written(command, folder, "--file", tmp_path / "texts.txt") == lines
    assert written(command, folder, given="\r\n".join(LINES) + "\r\n") == lines


def test_options_reach_the_generator(model_folders: dict[str, Path]) -> None:
    rewriter, _ = open_model(model_folders["translate"])
    assert isinstance(rewriter, Rewriter)
    given = {"num_beams": 3, "max_new_tokens": 9, "length_penalty": 0.5, "no_repeat_ngram": 2}
    (expected,) = rewriter.write(["the cat"], rewriter.decoding(given))
    assert expected != rewriter.write(["the cat"], rewriter.decoding({}))[0]
    options = ["--num-beams", "3", "--max-tokens", "9", "--length-penalty", "0.5", "--no-repeat-ngram", "2"]
    assert written("translate", model_folders["translate"], "the cat", *options) == expected + "\n"


def test_it_is_said_that_the_end_of_a_text_was_not_read(model_folders: dict[str, Path]) -> None:
    said = "1 of 2 texts longer than the model reads: their ends made no difference\n"
    assert written("translate", model_folders["translate"], given="short\n" + "long " * 20 + "\n", said=said)


def test_questions_from_anywhere_are_answered_as_the_model_does(model_folders: dict[str, Path], tmp_path: Path) -> None:
    answerer, _ = open_model(model_folders["answer"])
    assert isinstance(answerer, Answerer)
    context, questions = tmp_path / "context.txt", ["who?", "What was it?", ""]
    context.write_text("Ships")
    expected = [answerer.answer("Ships", question).text for question in questions]
    assert "" in expected[:2]
    assert any(expected)
    command = ("answer", model_folders["answer"], "--context")
    assert written(*command, context, given="\n".join(questions) + "\n") == "".join(f"{text}\n" for text in expected)
    for question, answer in zip(questions, expected, strict=True):
        assert written(*command, context, question) == answer + "\n"
        assert written(*command, "-", question, given="Ships\n") == answer + "\n"


def test_a_text_from_anywhere_has_the_models_label(model_folders: dict[str, Path]) -> None:
    classifier, folder = open_model(model_folders["classify"])[0], model_folders["classify"]
    assert isinstance(classifier, Classifier)
    tops = [next(iter(one.items()), None) for one in classifier.classify(LINES)]
    lines = ["" if top is None else f"{top[0]}\t{top[1]:.3f}" for top in tops]
    assert written("classify", folder, LINES[0]) == lines[0] + "\n"
    assert written("classify", folder, given="\n".join(LINES) + "\n") == "".join(f"{line}\n" for line in lines)


def test_a_prompt_from_anywhere_is_continued_as_the_model_does(model_folders: dict[str, Path], tmp_path: Path) -> None:
    continuer, _ = open_model(model_folders["generate"])
    assert isinstance(continuer, Continuer)
    prompt, folder = "Grüß\nthe cat", model_folders["generate"]
    (tmp_path / "prompt.txt").write_text(prompt + "\n")
    expected = prompt + "".join(continuer.stream(prompt, continuer.decoding({}))) + "\n"
    assert written("generate", folder, prompt) == expected
    assert written("generate", folder, "--file", tmp_path / "prompt.txt") == expected
    assert written("generate", folder, given=prompt + "\n") == expected
    unprompted = "".join(continuer.stream("", continuer.decoding({}))) + "\n"
    assert written("generate", folder) == unprompted


def test_generate_continues_the_prompt_the_same_way_for_the_same_seed(run_folder: Path) -> None:
    first, again, other = (written("generate", run_folder, "Grüß", "--max-tokens", "30", "--seed", s) for s in "112")
    assert first.startswith("Grüß")
    assert len(first) > len("Grüß\n")
    assert first == again
    assert first != other


@pytest.mark.parametrize("command", ["translate", "summarize", "answer", "generate", "classify"])
def test_a_model_of_another_task_names_the_command_that_fits(
    command: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "context.txt").write_text("Ships")
    options = ["--context", str(tmp_path / "context.txt")] if command == "answer" else []
    other, fits = ("summarize", "summarization") if command != "summarize" else ("answer", "question_answering")
    line = f"must be a model to {command} with, got one for {fits}; use agfl-model {other}"
    assert refusal(command, model_folders[other], "text", *options) == f"{model_folders[other]}: {line}"


def test_bad_input_is_one_line_and_exit_code_2(model_folders: dict[str, Path], tmp_path: Path) -> None:
    translate = ("translate", model_folders["translate"])
    assert refusal(*translate, "--file", tmp_path / "no") == f"{tmp_path}/no: cannot be read: No such file or directory"
    assert refusal(*translate, "--file", tmp_path, "text") == f"--file: must not be given beside TEXT, got {tmp_path}"
    line = "standard input: line 2: must be UTF-8 text, got byte 0xff at 3"
    assert refusal(*translate, given=b"a\nb c\xff\n") == line
    assert refusal(*translate, "a\udcff") == "text: must be UTF-8 text, got 'a\\udcff'"
    answer = ("answer", model_folders["answer"], "--context", "-")
    assert refusal(*answer).startswith("QUESTION: required with --context -")
    assert refusal(*answer, "who?", given=b" \n") == "--context: -: must hold text, got ' '"
    assert refusal(*answer, "who?", given=b"\xff") == "standard input: must be UTF-8 text, got byte 0xff at 0"


def test_a_temperature_that_is_no_number_is_one_line_and_exit_code_2(run_folder: Path) -> None:
    line = "decoding: temperature: Input should be a finite number, got nan"
    assert refusal("generate", run_folder, "--temperature", "nan") == line


def test_a_number_that_no_machine_can_use_is_one_line(run_folder: Path) -> None:
    long = refusal("generate", run_folder, "--max-tokens", "1000000000000")
    assert long == "decoding: max_new_tokens: Input should be less than or equal to 1048576, got 1000000000000"
    result = agfl_model("generate", run_folder, "--seed", str(2**64))
    assert (result.returncode, "Invalid value for '--seed'" in result.stderr) == (2, True)


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    result = agfl_model("generate", tmp_path / ("x" * 300))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.endswith("/model/config.yaml: File name too long [AGFL-MACHINE-002]\n")


def test_a_missing_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = agfl_model("translate", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path}/config.yaml: no such file [AGFL-CONFIG-003]\n"


def test_a_model_without_a_task_is_described_but_not_used(tmp_path: Path) -> None:
    model = AutoGenModel({"dim": 8, "layers": [{"type": "ff"}]})
    save_model(tmp_path, model.config, model.state_dict())
    assert "layers.0" in written("describe", tmp_path)
    assert refusal("generate", tmp_path) == f"{tmp_path}: task: required to use the model, got none"


def test_evaluate_prints_the_metrics_of_all_rows(model_folders: dict[str, Path], tmp_path: Path) -> None:
    data, folder = tmp_path / "pairs.tsv", model_folders["translate"]
    rows = [TranslationRow(source=line, target=line[::-1]) for line in LINES if line]
    data.write_text("en\tde\n" + "".join(f"{row.source}\t{row.target}\n" for row in rows))
    user, _ = open_model(folder)
    expected = evaluate_rows(user.model, user.task, rows)
    columns = ("--data", data, "--columns", "source=en,target=de")
    said = f"{data}: 1 file, 3 rows, columns en, de, 58 characters, utf-8\n"
    found = json.loads(written("evaluate", folder, *columns, "--json", said=said))
    assert found["rows"] == len(rows)
    assert found["metrics"] == expected
    assert found["signatures"]["eval/bleu"] == bleu_signature()
    assert found["signatures"]["eval/chrf"] == chrf_signature()
    table = written("evaluate", folder, *columns, said=said)
    cells = {row[1].strip(): row for line in table.splitlines() if len(row := line.split("│")) == 4}
    assert cells["bleu"][2].strip() == f"{expected['eval/bleu']:.4f}"
    assert f"bleu: {bleu_signature()}" in table.splitlines()
    assert cells["loss"][2].strip() == f"{expected['eval/loss']:.4f}"


def test_evaluate_names_a_bad_row(model_folders: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    write_rows(data, [TranslationRow(source="a", target="b")])
    line = refusal("evaluate", model_folders["summarize"], "--data", data)
    assert line == f"data: {data}: line 1: must have a column 'document', got 'source', 'target'"


def read_until(terminal: int, end: str) -> str:
    shown, limit = "", time.monotonic() + 60
    while not shown.endswith(end):
        assert time.monotonic() < limit, shown
        shown += os.read(terminal, 1 << 16).decode("utf-8", errors="replace")
    return shown


# What a shell does for a command that it starts in a terminal.
IN_TERMINAL = """
import os, sys
from agfl_models.cli import main

os.setsid()
terminal = os.open(sys.argv.pop(1), os.O_RDWR)  # it is the session's from now on
for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
    os.dup2(terminal, number)
    setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
main()
"""


@contextmanager
def on_a_terminal(folder: Path, prompt: str, *arguments: str | Path) -> Iterator[tuple[int, Started]]:
    """Start a command in a terminal of its own; once it prompts, give the terminal's other end and the process."""
    script = folder / "in_terminal.py"
    script.write_text(IN_TERMINAL)
    ours, theirs = pty.openpty()
    process = Started(script, os.ttyname(theirs), *arguments, env=ENVIRONMENT, log=folder / "log")
    try:
        read_until(ours, prompt)
        os.close(theirs)
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def rest_of(terminal: int) -> str:
    """Return what was shown on a terminal before its process ended."""
    shown = b""
    with suppress(OSError):  # a terminal without a process
        while part := os.read(terminal, 1 << 16):
            shown += part
    return shown.decode("utf-8", errors="replace")


def test_on_a_terminal_it_asks_until_the_end_of_input(model_folders: dict[str, Path], tmp_path: Path) -> None:
    rewriter, _ = open_model(model_folders["summarize"])
    assert isinstance(rewriter, Rewriter)
    decoding, control = rewriter.decoding({}), re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    texts = (f"the {letter}" for letter in string.ascii_letters)
    text, expected = next((text, out) for text in texts if control.search(out := rewriter.write([text], decoding)[0]))
    with on_a_terminal(tmp_path, "text> ", "summarize", model_folders["summarize"]) as (terminal, process):
        os.write(terminal, text.encode() + b"\n")
        shown = read_until(terminal, "text> ")
        # What would move the cursor is not sent to a terminal.
        visible = control.sub("\ufffd", expected)
        assert visible.split() == shown.removesuffix("text> ").replace(text, "", 1).split()
        os.write(terminal, b"\x04")
        assert process.wait(20) == 0


def test_ctrl_c_on_a_terminal_is_no_traceback(model_folders: dict[str, Path], tmp_path: Path) -> None:
    with on_a_terminal(tmp_path, "prompt> ", "generate", model_folders["generate"]) as (terminal, process):
        time.sleep(0.5)  # between its prompt and its wait for a key Python would note the signal for later
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert rest_of(terminal).strip() == ""


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, agfl_models, agfl_models.cli\n"
        "slow = {'torch', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert agfl_model("--help").returncode == 0


def test_the_package_has_its_names_and_no_others() -> None:
    import agfl_models

    for name in ("AttentionLayer", "AutoGenModel", "CrossAttentionLayer", "FFLayer", "ModelConfig", "RNNLayer"):
        vars(agfl_models).pop(name, None)  # as if nobody had asked for it before
        assert getattr(agfl_models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'AutoGenModle'"):
        _ = agfl_models.AutoGenModle


def test_closed_standard_input_is_an_empty_one(run_folder: Path) -> None:
    """The first file that is opened, here of the model, would else be standard input."""
    command = [str(COMMAND), "generate", str(run_folder), "--max-tokens", "2"]
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
