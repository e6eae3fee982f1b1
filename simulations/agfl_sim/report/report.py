"""The report of a simulated run: the server's page, and what only a simulation knows, which has all owners' text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from agfl_models.tasks.task import MainMetric
from agfl_server.report import page
from agfl_server.report.page import Section
from agfl_sim.baselines.comparison import Comparison
from agfl_sim.report.devices_section import devices_section
from agfl_sim.report.dot_plot import DOT_PLOT_CSS
from agfl_sim.report.join_section import join_section
from agfl_sim.report.samples import write_samples
from agfl_sim.report.width_section import width_section


def write_report(
    folder: Path,
    main_metric: MainMetric,
    owners: Sequence[Path],
    comparison: Comparison | None = None,
    caution: str = "",
) -> Path:
    """Write report.html of the finished run in `folder`, and return where it is.

    owners: their files. comparison: with the baselines, where the run has any. caution: what a reader must know of how
    the run was simulated.

    Raises:
        AgflError: a file of the run is missing, unreadable or malformed.
    """
    join = "" if comparison is None else join_section(comparison)
    sections = [
        Section(f'<p class="caution"><strong>{escape(caution)}</strong></p>' if caution else ""),
        Section(join, DOT_PLOT_CSS),
        Section(write_samples(folder, owners), quotes_owners=True),
        Section(width_section(folder)),
        Section(devices_section(folder)),
    ]
    return page.write_report(folder, main_metric, sections)
