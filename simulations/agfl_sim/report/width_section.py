"""The report's section on the widths of an elastic model: who trained each, what it is worth, and which one to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agfl_server.report.charts import number_text
from agfl_server.report.table import table
from agfl_sim.baselines.widths import FILE, Width, read_widths

NONE = "&ndash;"


def width_section(folder: Path) -> str:
    """Return the section as HTML, from OUTPUT/widths.json; nothing where the model has one width.

    Raises:
        DataError: the file is unreadable or malformed.
    """
    widths = read_widths(folder / FILE)
    if not widths:
        return ""
    heads = ("Width", "parameters", "FLOPs a token", "ms a batch", "owners", "gain of its ring", "a device uses")
    return f"""<h2 id="widths">Widths</h2>
<p class="answer">{_answer(widths)}</p>
<div class="scroll" role="region" aria-labelledby="widths" tabindex="0">
{table(heads, map(_row, widths))}
</div>
<p class="note">Owners: that trained the ring in the last round. Gain: the share of the validation loss that the ring
takes away, at those who hold it. A device uses, of the widths that it holds, the fastest of those with the least loss,
alike within 0.2 %. Milliseconds are this machine's.</p>"""


def _answer(widths: Sequence[Width]) -> str:
    frozen = [f"{one.width:g}" for one in widths[1:] if not one.owners]
    if frozen:
        return f"Too few owners hold width {', '.join(frozen)}: its ring was not trained in the last round."
    return f"All {len(widths)} widths were trained in the last round."


def _row(one: Width) -> str:
    gain = NONE if one.gain is None else f"{100 * one.gain:.2f} %"
    owners = NONE if one.owners is None else f"{one.owners:,}"
    numbers = (f"{one.num_parameters:,}", f"{one.flops_per_token:,}", number_text(one.ms), owners, gain, f"{one.use:g}")
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    return f'<tr><th scope="row">{one.width:g}</th>{cells}</tr>'
