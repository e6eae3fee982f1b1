"""What every test has is loaded by the processes that run tests, and not by the one that deals them out."""

from __future__ import annotations

import gc
import os
import signal

import pytest

# Several tests run at a time on few cores, where threads that wait for each other cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
# Else a child forked while another thread calls gRPC may abort before it is a program, and nobody is told.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# A shell starts background jobs with SIGINT ignored, and children inherit that: give ours Ctrl-C back.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Load what tests have; where others run them, begin to load what all their commands are forked from."""
    if getattr(config.option, "numprocesses", None):
        from tests import commands

        commands.share_between_workers()
    else:
        from tests import tiny_federation

        config.pluginmanager.register(tiny_federation)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()
