"""The report's section "Should I join?": an answer, the models side by side, and every owner."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from agfl_server.report.charts import number_text
from agfl_server.report.table import table
from agfl_sim.baselines.comparison import CENTRALIZED, GLOBAL, LOCAL, MODELS, NAMES, Comparison
from agfl_sim.report.dot_plot import DotPlot, dot_plot


def join_section(comparison: Comparison) -> str:
    """Return the section as HTML."""
    answer = f'<h2 id="join">Should I join?</h2>\n<p class="answer">{escape(comparison.answer)}</p>'
    if not comparison.owners:
        return answer
    return f"""{answer}
<div class="scroll beside" role="region" aria-labelledby="join" tabindex="0">
{_summary(comparison)}
</div>
<p class="note">{escape(_note(comparison))}</p>
<h2 id="owners">Every owner</h2>
<div class="beside">
<div class="scroll" role="region" aria-label="chart of owners" tabindex="0">
{_chart(comparison)}
</div>
<div class="scroll" role="region" aria-labelledby="owners" tabindex="0">
{_owners(comparison)}
</div>
</div>"""


def _summary(comparison: Comparison) -> str:
    total, gaining, even = len(comparison.owners), comparison.num_gaining, comparison.num_even
    losing = total - gaining - even
    rows = [
        _row("All owners together", comparison.pooled, comparison),
        _row("Median owner", comparison.median, comparison),
        _row("Worst tenth of owners", comparison.worst_tenth, comparison),
        f'<tr><th scope="row">Owners for whom it is better than their own, or their own than the global one</th>'
        f"<td>{_share(gaining, total)}</td><td>{_share(comparison.num_gaining_tuned, total)}</td>"
        f"<td>{_share(losing, total)}</td><td></td><td></td></tr>",
    ]
    return table(_columns("Validation text of"), rows, _caption(comparison))


def _owners(comparison: Comparison) -> str:
    rows = (_row(name, comparison.owners[name], comparison) for name in comparison.gains)
    return table(_columns("Owner"), rows, _caption(comparison))


def _caption(comparison: Comparison) -> str:
    direction = "higher" if comparison.metric.higher_is_better else "lower"
    return f"{comparison.metric.title}, {direction} is better"


def _columns(first: str) -> tuple[str, ...]:
    return (first, *NAMES.values(), "joining brings")


def _row(name: str, values: Mapping[str, float], comparison: Comparison) -> str:
    cells = "".join(f"<td>{number_text(values[model])}</td>" for model in MODELS)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}{_gain(comparison.gain(values))}</tr>'


def _gain(gain: float) -> str:
    if gain == 0:
        return "<td>nothing</td>"
    return f"<td>{number_text(gain)} better</td>" if gain > 0 else f'<td class="worse">{number_text(-gain)} worse</td>'


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({100 * count / total:.0f}&nbsp;%)"


def _note(comparison: Comparison) -> str:
    budget = comparison.budget
    return (
        f"Own model: each owner trains the same initial model alone on its own training text, as long as in the "
        f"federation ({budget.local:,} {budget.unit}). Trained further at home: the global model goes on, on an "
        f"owner's own training text ({budget.tuned:,} {budget.unit}). All text in one place: one model trains on that "
        f"of all owners, on as many examples as the federation saw ({budget.centralized:,} {budget.unit}). All keep "
        f"their optimizer all along, and of up to {budget.num_points} models along the way the best one counts, chosen "
        f"on the very validation text it is judged by, while the global model is that of the last round: this favors "
        f"them. On the other hand, batch size and learning rate are those of the run, chosen for the federation. "
        f"The worst tenth is exact here; the curve below has it from a histogram, which is all that a server learns."
    )


def _chart(comparison: Comparison) -> str:
    rows = {name: comparison.owners[name] for name in comparison.gains}
    return dot_plot(
        DotPlot(
            title="Owners, by what joining brings",
            unit=comparison.metric.title,
            names=(NAMES[GLOBAL], NAMES[LOCAL], NAMES[CENTRALIZED]),
            rows={name: (values[GLOBAL], values[LOCAL], values[CENTRALIZED]) for name, values in rows.items()},
            higher_is_better=comparison.metric.higher_is_better,
        )
    )
