"""What two runs must have alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agfl_client.ledger.ledger_file import read_entries


def result(folder: Path) -> tuple[Any, ...]:
    """All that a run leaves, but for how long it took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    owners = {
        path.name: [
            (e["event"], e["round"], e["exchange"]) for e in read_entries(path / "ledger.jsonl") if "exchange" in e
        ]
        for path in sorted((folder / "nodes").iterdir())
        if (path / "ledger.jsonl").exists()
    }
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, [{**row, "seconds": 0} for row in rows], owners
