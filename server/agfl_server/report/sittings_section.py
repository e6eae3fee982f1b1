"""The report's section on how the run was computed: when, how long, by which command, version and kind of machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from html import escape

from agfl_server.report.plain_text import plain
from agfl_server.report.table import table
from agfl_server.run.sittings import Sitting

_UNKNOWN = "unknown: it goes on, or was killed"


def total_time(sittings: Sequence[Sitting]) -> str:
    """Return how long all sittings took together; at least so long, where one has left no end."""
    known = [one.seconds for one in sittings if one.seconds is not None]
    if not known:
        return "unknown"
    return f"{'' if len(known) == len(sittings) else 'at least '}{duration_text(sum(known))}"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: 12.3 s, 4 min 5 s, 27 h 3 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def when(sittings: Sequence[Sitting]) -> str:
    """Return from when to when the run was computed, and by which version; nothing where none was kept."""
    if not sittings:
        return ""
    ended = sittings[-1].ended
    until = "" if ended is None else f" to {_time(ended)}"
    versions = ", ".join(dict.fromkeys(one.version for one in sittings))
    return f"{_time(sittings[0].started)}{until}, agfl {escape(plain(versions))}"


def sittings_section(sittings: Sequence[Sitting]) -> str:
    """Return the section as HTML; nothing where none was kept."""
    if not sittings:
        return ""
    heads = ("Started", "Ended", "Time", "Outcome", "agfl", "Machine")
    return f"""<h2 id="sittings">How it was computed</h2>
<div class="scroll texts" role="region" aria-labelledby="sittings" tabindex="0">
{table(heads, map(_row, reversed(sittings)))}
</div>"""


def _row(one: Sitting) -> str:
    ended = _UNKNOWN if one.ended is None else _time(one.ended)
    took = "&ndash;" if one.seconds is None else duration_text(one.seconds)
    machine = ", ".join(f"{name} {value}" for name, value in one.machine.items())
    values = (ended, took, one.outcome or "&ndash;", _text(one.version), _text(machine))
    cells = "".join(f"<td>{cell}</td>" for cell in values)
    command = f'<tr><td colspan="6"><code>{_text(shlex.join(one.command))}</code></td></tr>'
    return f'<tr><th scope="row">{_time(one.started)}</th>{cells}</tr>\n{command}'


def _text(text: str) -> str:
    return escape(plain(text))


def _time(moment: datetime) -> str:
    text = moment.isoformat(" ", "seconds")
    return f"{text[:19]} UTC{text[19:].replace('+00:00', '')}"
