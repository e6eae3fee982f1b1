"""The report's section on owners' devices in virtual time: what a shorter or longer deadline would have meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agfl_server.report.charts import number_text
from agfl_server.report.sittings_section import duration_text
from agfl_server.report.table import table
from agfl_sim.virtual_time.answers import Answer, read_answers
from agfl_sim.virtual_time.timed import ANSWERS, FOLDER

_SHARES = (0.5, 0.75, 0.9, 0.95, 1.0)


def devices_section(folder: Path) -> str:
    """Return the section as HTML; nothing for a run in the time of its machine.

    Raises:
        CheckpointError, DataError: the answers that the run kept are unreadable or malformed.
    """
    answers = read_answers(folder / FOLDER / ANSWERS)
    if not answers:
        return ""
    late = sum(one.is_late for one in answers)
    trips = defaultdict[float, list[Answer]](list)
    for one in answers:
        trips[one.sent].append(one)
    heads = ("Answers in time", "deadline", "owners in a sum", "a request takes")
    return f"""<h2 id="devices">Owners' devices</h2>
<p class="answer">Times are virtual. {late:,} of {len(answers):,} answers with an update came too late:
nobody waited for them any more.</p>
<div class="scroll" role="region" aria-labelledby="devices" tabindex="0">
{table(heads, (_row(share, answers, list(trips.values())) for share in _SHARES))}
</div>
<p class="note">Of requests to train: had the server waited until the deadline and no longer, and asked the same owners.
Owners in a sum, and how long a request takes, are means over {len(trips):,} requests.</p>"""


def _row(share: float, answers: Sequence[Answer], trips: Sequence[Sequence[Answer]]) -> str:
    deadline = float(np.quantile([one.seconds for one in answers], share, method="higher"))
    owners = np.mean([sum(one.seconds <= deadline for one in trip) for trip in trips])
    took = np.mean([min(deadline, max(one.seconds for one in trip)) for trip in trips])
    numbers = (duration_text(deadline), number_text(float(owners)), duration_text(float(took)))
    return f'<tr><th scope="row">{share:.0%}</th>{"".join(f"<td>{number}</td>" for number in numbers)}</tr>'
