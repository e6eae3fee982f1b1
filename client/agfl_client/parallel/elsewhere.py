"""Ranks on another machine of the owner: processes that join its node, and join it again whenever that starts anew."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from agfl_client.parallel.door import address_of, keep_alive
from agfl_client.parallel.link import TO_RANK, Begin, Join, Line, RankLostError, Refused
from agfl_client.parallel.machine_key import machines_tls
from agfl_client.parallel.rank import begin_as_rank, serve
from agfl_models.version import VERSION

_PROGRAM = "from agfl_client.parallel.elsewhere import main; main()"
_AGAIN_S, _HANDSHAKE_S = 1.0, 30.0
_TURNED_AWAY = 3  # the exit code of a rank that had better not come again
log = logging.getLogger("agfl.client")


def keep_ranks(node: str, key: Path, devices: Sequence[str], num_threads: int, pretrained: Path | None) -> int:
    """Keep a rank on each device until a signal; return 2 once the node turns one away, which has said why.

    node: HOST:PORT, where it meets them; key: the machines' file; num_threads: PyTorch's, of each.

    Raises:
        ConfigError, IdentityError: the address is malformed, or as `machines_tls`.
    """
    address_of("--join", node)
    machines_tls(key, is_node=False)
    own = [node, str(key.absolute()), str(num_threads), "" if pretrained is None else str(pretrained.absolute())]
    ranks = [launch([*own, device], num_threads) for device in devices]
    pids = ", ".join(str(rank.pid) for rank in ranks)
    log.info("%d ranks (processes %s) join %s whenever it trains; stop with Ctrl-C", len(ranks), pids, node)
    try:
        while True:
            time.sleep(_AGAIN_S / 5)
            for i, device in enumerate(devices):
                if (code := ranks[i].poll()) is None:
                    continue
                if code == _TURNED_AWAY:
                    return 2
                if code:
                    log.info("a rank ended (%d); another one takes its place", code)
                ranks[i] = launch([*own, device], num_threads)
                log.info("process %d is a rank", ranks[i].pid)
    finally:
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        for rank in ranks:
            with suppress(subprocess.TimeoutExpired):
                rank.wait(5)


def launch(arguments: Sequence[str], num_threads: int) -> subprocess.Popen[bytes]:
    """Start a rank that ends with this process; it finds the modules that this process finds."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(num_threads)},
    )


def main() -> None:
    """Entry point of one rank: joins the node, serves it once, and ends."""
    begin_as_rank()
    node, key, num_threads, pretrained, device = sys.argv[1:]
    try:
        connected = _connected(*address_of("--join", node), Path(key))
    except ssl.SSLError as error:
        log.error("--join: what answers at %s does not have this %s (%s)", node, Path(key).name, error.reason)
        sys.exit(_TURNED_AWAY)
    line = Line(connected, TO_RANK)
    try:
        line.send(Join(VERSION, torch.device(device).type))
        begin = line.receive()
        if isinstance(begin, Refused):
            log.error("the node turns this machine away: %s", begin.line)
            sys.exit(_TURNED_AWAY)
        assert isinstance(begin, Begin), begin
        threading.Thread(target=_leave_with, args=(line,), daemon=True).start()
        own = connected.getsockname()[0], int(num_threads), Path(pretrained) if pretrained else None
        serve(line, replace(begin, device=device, address=own[0], num_threads=own[1], pretrained=own[2]))
    except RankLostError as error:
        log.info("%s", error)
        sys.exit(1)


def _connected(host: str, port: int, key: Path) -> ssl.SSLSocket:
    """Return the connection to the node, once that waits for ranks; raises ssl.SSLError where another one answers."""
    tls = machines_tls(key, is_node=False)
    while True:
        try:
            connected = socket.create_connection((host, port), _HANDSHAKE_S)
            keep_alive(connected)
            return tls.wrap_socket(connected)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # it closed its port just now
            time.sleep(_AGAIN_S)
        except ssl.SSLError:
            raise
        except OSError:
            time.sleep(_AGAIN_S)


def _leave_with(line: Line) -> None:
    """End this process in whatever it does, once the node hangs up or is gone."""
    line.is_left(None)
    os._exit(0)
