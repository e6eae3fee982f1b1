"""The report of a deployed run, from what the server has: no owner's text is in it."""

from __future__ import annotations

from pathlib import Path

from agfl_models.errors import DataError
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.store import CONFIG_FILE
from agfl_protocol.config.run_config import load_finished
from agfl_server.report.page import Section, write_report
from agfl_server.report.samples_section import own_samples_section


def write_report_of(run_folder: Path, output: Path | None = None) -> Path:
    """Write the report of the run in a folder, finished or under way, and return where it is.

    output: report.html in the folder if omitted.

    Raises:
        AgflError: there is nothing to report yet, a file of the run is malformed, or the page cannot be written.
    """
    if not (run_folder / CONFIG_FILE).exists():
        raise DataError(
            "AGFL-DATA-064", f"{run_folder}: must hold a run that has begun, holds none{folder_hint(run_folder.parent)}"
        )
    main_metric = load_finished(run_folder / CONFIG_FILE).task.main_metric
    return write_report(run_folder, main_metric, [Section(own_samples_section(run_folder))], output)
