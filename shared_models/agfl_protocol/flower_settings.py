"""What every command that imports Flower sets before they import Flower for the first time."""

from __future__ import annotations

import logging
import os


def prepare_flower() -> None:
    """Turn off Flower's telemetry and update check, and show our own log lines on stderr."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("agfl").setLevel(logging.INFO)
    logging.getLogger("flwr").propagate = False  # it has a handler of its own
