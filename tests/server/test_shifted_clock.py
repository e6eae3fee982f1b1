"""A machine whose clock is nearly five minutes off, for every module of its node: it is let in and answers."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Site

    from agfl_server.transport.superlink import EmbeddedSuperLink

# What a shifted clock of the machine would do to every module of the process.
SHIFTED = """
import datetime, runpy, sys, time
seconds, script = float(sys.argv[1]), sys.argv[2]
clock, clock_ns, real = time.time, time.time_ns, datetime.datetime
class Shifted(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=seconds)
time.time = lambda: clock() + seconds
time.time_ns = lambda: clock_ns() + int(seconds * 1e9)
datetime.datetime = Shifted
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def start(site: Site, server: EmbeddedSuperLink, seconds: int) -> subprocess.Popen[str]:
    from tests.server.conftest import ECHO_NODE

    arguments = (f"127.0.0.1:{server.port}", str(site.ca), str(site.keys("alice")))
    command = [sys.executable, "-c", SHIFTED, str(seconds), str(ECHO_NODE), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seconds", [290, -290])
def test_a_clock_that_is_nearly_five_minutes_off_does_no_harm(seconds: int, site: Site) -> None:
    from flwr.app import Message

    with site.superlink() as server, start(site, server, seconds) as process:
        try:
            site.wait_until(lambda: len(list(server.grid.get_node_ids())) == 1, timeout_s=60)  # a new interpreter
            (node,) = server.grid.get_node_ids()
            (reply,) = server.grid.send_and_receive([Message(site.floats(10), node, "train")], timeout=20)
            assert reply.has_content()
        finally:
            process.kill()
