"""The report's section on what the final model writes: a few texts, made alike each time the report is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from agfl_models.files.store import CONFIG_FILE, MODEL_FOLDER
from agfl_models.inference import Continuer, User, load_task, user_of
from agfl_server.report.plain_text import plain
from agfl_server.report.table import table

Sample = Mapping[str, str]  # what each text is -> the text; the model's own is the last one
MAX_SHOWN = 400  # characters of a text
_SEEDS = (0, 1, 2)
_MAX_TOKENS, _MIN_TOKENS, _PARAMETERS_A_SAMPLE = 120, 8, 5_000_000_000
_OWN_NOTE = (
    "The server holds no text of its owners: the model begins by itself, without a prompt, and draws each next token "
    "by a fixed seed."
)


def samples_section(samples: Sequence[Sample], note: str) -> str:
    """Return the section as HTML; nothing without samples, which all have the same parts."""
    if not samples:
        return ""
    rows = (f"<tr>{''.join(map(_cell, sample.values()))}</tr>" for sample in samples)
    return f"""<h2 id="samples">What the model writes</h2>
<div class="scroll texts" role="region" aria-labelledby="samples" tabindex="0">
{table(samples[0], rows)}
</div>
<p class="note">{escape(note)}</p>"""


def own_samples_section(folder: Path) -> str:
    """Return the section for a server: what a language model in a run folder writes by itself, and nothing else."""
    user = final_model(folder)
    if not isinstance(user, Continuer):
        return ""
    decoding = user.decoding({"max_new_tokens": max_tokens(user)})
    return samples_section([{"The model": "".join(user.stream("", decoding, seed))} for seed in _SEEDS], _OWN_NOTE)


def final_model(folder: Path) -> User | None:
    """Return what uses the run's model; None as long as there is none, and where it is not one of text.

    Raises:
        AgflError: it cannot be used.
    """
    if not (folder / MODEL_FOLDER / CONFIG_FILE).exists():
        return None
    model, task, _ = load_task(folder / MODEL_FOLDER)
    return user_of(model, task)


def max_tokens(user: User) -> int:
    """Return how long a sample may be: the larger the model, the shorter, so that all together take a few seconds."""
    size = sum(parameter.numel() for parameter in user.model.parameters())
    return max(_MIN_TOKENS, min(_MAX_TOKENS, _PARAMETERS_A_SAMPLE // max(size, 1)))


def _cell(text: str) -> str:
    if not text.strip():
        return "<td><small>(nothing)</small></td>"
    return f'<td><bdi dir="auto">{escape(plain(text, MAX_SHOWN))}</bdi></td>'
