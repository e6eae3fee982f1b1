"""What `agfl-client probe` found, for a person to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from agfl_client.training.probe import Measured


def print_table(measured: Sequence[Measured], steps: int | None, device: str, free_bytes: int) -> None:
    """Print one line a width; steps: of a round, None where a round goes over all of the data."""
    table = Table(title=f"training on {device}, {free_bytes / 1e6:,.0f} MB free")
    for column in ("width", "parameters", "memory, MB", "ms a step", "s of training"):
        table.add_column(column, justify="right")
    for one in measured:
        seconds = "-" if steps is None else f"{one.step_s * steps:.1f}"
        memory, step = f"{one.memory_bytes / 1e6:.1f}", f"{1000 * one.step_s:.1f}"
        table.add_row(f"{one.width:g}", f"{one.num_parameters:,}", memory, step, seconds)
    Console().print(table)
    if not measured[0].holds_out:
        print("none of this data is held out to evaluate on: that takes two different rows, or documents between blank")
        print("lines, and task.validation_fraction above 0")
    if steps is None:
        reason = "with training.local_epochs the steps follow from the text"
        print(f"no time of a round is given, and no width proposed: {reason}")
        return
    print("the times are of training alone; a round that evaluates takes longer")


def print_proposal(proposal: Measured | None, measured: Sequence[Measured], max_seconds: float) -> None:
    """Print the line for the owner's policy."""
    if proposal is None:
        print(f"not even width {measured[0].width:g} fits in memory and trains a round in {max_seconds:g} s here")
        return
    print(f"proposed for your policy file, since training then takes at most {max_seconds:g} s a round:")
    print(f"max_width: {proposal.width:g}")


def probe_json(
    measured: Sequence[Measured], steps: int | None, device: str, free_bytes: int, proposal: Measured | None
) -> str:
    """Return the same for a machine; the width that is proposed is null where none is."""
    width = None if proposal is None else proposal.width
    shown = {"device": device, "free_bytes": free_bytes, "steps": steps, "max_width": width}
    return json.dumps({**shown, "widths": [asdict(one) for one in measured]})
