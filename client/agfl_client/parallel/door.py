"""Where ranks of an owner's other machines join its node: a port that is open while it waits for them."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import urlsplit

from agfl_client.parallel.choice import Parallel
from agfl_client.parallel.link import FROM_RANK, Join, Line, RankLostError, Refused
from agfl_client.parallel.machine_key import machines_tls, make_machine_key
from agfl_client.training.deadline import Deadline
from agfl_models.errors import ConfigError
from agfl_models.version import VERSION

_HANDSHAKE_S = 10.0
_AT_A_TIME = 64
log = logging.getLogger("agfl.client")


def address_of(option: str, text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raises ConfigError."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port and parts.netloc == f"{parts.hostname}:{parts.port}":
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError("AGFL-CONFIG-293", f"{option}: must be HOST:PORT, got {text!r}")


def with_door(parallel: Parallel, meet: str | None, key: Path) -> Parallel:
    """Return a choice with the door at HOST:PORT where its ranks of other machines join; `key` is made if need be.

    Raises:
        ConfigError: there is one without the other; or as `Door`.
    """
    if (meet is None) != (parallel.others == 0):
        rule = "must be given with ranks of other machines, as --parallel ddp:2+4 has them, and not without"
        raise ConfigError("AGFL-CONFIG-297", f"--meet: {rule}, got {meet!r} and {parallel.others} of them")
    if meet is None:
        return parallel
    make_machine_key(key)
    return replace(parallel, door=Door(meet, key, parallel.devices[0].partition(":")[0]))


class Door:
    """The port.

    text: HOST:PORT, an address of this machine in a network of the owner's own; key: the machines' file;
    device: the kind that all ranks have.

    Raises:
        ConfigError, IdentityError: this machine has no such address or the port is taken; or as `machines_tls`.
    """

    def __init__(self, text: str, key: Path, device: str) -> None:
        host, self._port = address_of("--meet", text)
        self._told = set[str]()
        self._tls, self._device = machines_tls(key, is_node=True), device
        try:
            self.address = socket.gethostbyname(host)
            socket.create_server((self.address, self._port)).close()
        except OSError as error:
            rule = "must be an IPv4 address of this machine and a free port"
            raise ConfigError("AGFL-CONFIG-294", f"--meet: {rule}, got {text!r} ({error.strerror})") from None

    def admit(self, count: int, deadline: Deadline, patience_s: float) -> list[tuple[str, Line]]:
        """Wait for so many ranks; return their machines' addresses, in order, and the lines to them.

        patience_s: of each line, as `Line` has it.

        Raises:
            RankLostError: they do not come by the deadline.
            ConfigError: one of them has another version or another kind of device; its own screen says it as well.
        """
        came = Queue[tuple[str, Line]]()
        admitted: list[tuple[str, Line]] = []
        log.info("waiting for %d ranks of your other machines at %s:%d", count, self.address, self._port)
        try:
            with socket.create_server((self.address, self._port)) as server:
                threading.Thread(target=self._let_in, args=(server, came, patience_s), daemon=True).start()
                try:
                    while len(admitted) < count:
                        came_from, line = came.get(timeout=min(deadline.left(), threading.TIMEOUT_MAX))
                        admitted.append((came_from, line))
                        self._check(line, deadline)
                finally:
                    socket.socket.shutdown(server, socket.SHUT_RDWR)  # which ends the thread
        except OSError as error:
            raise RankLostError(f"no rank can join at {self.address}:{self._port}: {error.strerror}") from error
        except Empty:
            self._turn_away(admitted)
            raise RankLostError(f"{len(admitted)} of {count} ranks of other machines came") from None
        except (RankLostError, ConfigError):
            self._turn_away(admitted)
            raise
        return sorted(admitted, key=lambda one: one[0])

    def _check(self, line: Line, deadline: Deadline) -> None:
        join = line.receive(deadline.left())
        assert isinstance(join, Join), join
        try:
            if join.version != VERSION:
                rule = "ranks of other machines must be of the node's version of agfl"
                raise ConfigError("AGFL-CONFIG-290", f"--parallel: {rule}, {VERSION}, got {join.version}")
            if join.device != self._device:
                rule = "ranks of other machines must have the node's kind of device"
                raise ConfigError("AGFL-CONFIG-292", f"--parallel: {rule}, {self._device}, got {join.device}")
        except ConfigError as error:
            line.send(Refused(str(error)))
            raise

    @staticmethod
    def _turn_away(admitted: list[tuple[str, Line]]) -> None:
        for _, line in admitted:
            line.close()

    def _let_in(self, server: socket.socket, came: Queue[tuple[str, Line]], patience_s: float) -> None:
        """Give each who connects a thread of its own, since a stranger says nothing for as long as it likes."""
        free = threading.Semaphore(_AT_A_TIME)
        with suppress(OSError):
            while True:
                connected, (host, _) = server.accept()
                if free.acquire(blocking=False):
                    its = connected, host, came, free, patience_s
                    threading.Thread(target=self._greet, args=its, daemon=True).start()
                else:
                    connected.close()

    def _greet(
        self,
        connected: socket.socket,
        host: str,
        came: Queue[tuple[str, Line]],
        free: threading.Semaphore,
        patience_s: float,
    ) -> None:
        try:
            connected.settimeout(_HANDSHAKE_S)
            keep_alive(connected)
            secured = self._tls.wrap_socket(connected, server_side=True)
            came.put((host, Line(secured, FROM_RANK, patience_s)))
        except OSError as error:
            connected.close()
            reason = error.reason if isinstance(error, ssl.SSLError) else "it said nothing"
            if host in self._told:  # once each: strangers come as often as they like
                return
            self._told.add(host)
            log.warning("%s connected without the key of your machines, and was turned away (%s)", host, reason)
        finally:
            free.release()


def keep_alive(connected: socket.socket) -> None:
    """Have the system notice within two minutes that the other machine is gone."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4), ("TCP_NODELAY", 1)):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
