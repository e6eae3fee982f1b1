"""The process group of a node's ranks: they meet over its lines, talk over one network, and prove who they are."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from agfl_client.parallel.link import Begin, Line, RankLostError
from agfl_client.parallel.meeting import Meeting
from agfl_client.training.deadline import Deadline

SECRET_BYTES = 32
_LABEL = b"agfl/ranks/v1"
MEET_S, SILENT_S, MOMENT_S = 60.0, 300.0, 5.0
_SIOCGIFADDR = 0x8915  # of Linux
_LEFT: list[Any] = []  # the group that was left last


def join(begin: Begin, lines: Sequence[Line]) -> None:
    """Join the default group of this process, as rank `begin.rank`. lines: the node's to all others, a rank's to it.

    Raises:
        RankLostError: the ranks do not meet in time, or another one took the place of one.
    """
    # Else a rank would listen at the address of the host's name, which may be that of another network.
    name = interface_of(begin.address)
    os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name, "TORCH_NCCL_BLOCKING_WAIT": "1"}
    device = torch.device(begin.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deadline = Deadline().within(begin.meet_s)
    meeting = Meeting(lines, deadline, is_node=begin.rank == 0)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=meeting,
            rank=begin.rank,
            world_size=begin.world,
            timeout=_wait(deadline),
        )
        if device.type == "cuda":
            dist.all_reduce(torch.zeros(1, device=device))  # NCCL meets at its first sum
        meeting.close()
        for pair in combinations(range(begin.world), 2):
            if begin.rank in pair:
                _prove(begin.secret, begin.rank, sum(pair) - begin.rank, deadline)
    except RuntimeError as error:  # as gloo and the store have it
        raise RankLostError(f"the ranks did not meet: {error}") from error
    be_patient(Deadline())


def be_patient(deadline: Deadline) -> None:
    """Let what is awaited of other ranks from now on take until a moment after the deadline, or so long at most."""
    _set_pg_timeout(timedelta(seconds=min(deadline.left() + MOMENT_S, SILENT_S)))


def interface_of(address: str) -> str:
    """Return the network interface that has an IPv4 address; raises RankLostError where none has."""
    if address.startswith("127."):  # which all are the loopback's
        return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    raise RankLostError(f"no network interface of this machine has the address {address}")


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        # Its destructor waits for gloo's threads with Python's lock, which they need to let go of tensors: for ever, if
        # it is the end of a broken collective. Once the next group is left they have long been done.
        _LEFT[:] = [dist.group.WORLD]
        dist.destroy_process_group()


def mesh(device: str) -> DeviceMesh:
    """Return the group as a mesh of one dimension, over the connections that there are."""
    world = dist.group.WORLD
    assert world is not None, "`join` comes first"
    return DeviceMesh.from_group(world, torch.device(device).type)


def broadcast(vector: NDArray[Any]) -> NDArray[Any]:
    """Return rank 0's `vector` on every rank; that of the others is as large, of its type, and filled in place."""
    filled = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
    dist.broadcast(filled, src=0)
    return filled.numpy()


def _wait(deadline: Deadline) -> timedelta:
    """Return the time that is left; a moment where none is, since to gloo 0 is for ever."""
    return timedelta(seconds=max(0.1, deadline.left()))


def _prove(secret: bytes, own: int, other: int, deadline: Deadline) -> None:
    """Let both ends of a connection show that they know the secret.

    gloo takes whoever connects first for the rank that it waits for, and any user of the machine can reach loopback.
    """
    challenge = os.urandom(SECRET_BYTES)
    asked = _swap(challenge, other, deadline)
    answer = _swap(_answer(secret, own, other, asked), other, deadline)
    if not hmac.compare_digest(answer, _answer(secret, other, own, challenge)):
        raise RankLostError(f"what took the place of rank {other} does not know the secret")


def _answer(secret: bytes, speaker: int, listener: int, challenge: bytes) -> bytes:
    said = _LABEL + speaker.to_bytes(2, "big") + listener.to_bytes(2, "big") + challenge
    return hmac.digest(secret, said, hashlib.sha256)


def _swap(content: bytes, other: int, deadline: Deadline) -> bytes:
    """Send 32 bytes to another rank, and return those that it sends."""
    got = torch.zeros(SECRET_BYTES, dtype=torch.uint8)
    works = (dist.isend(_tensor(content), other), dist.irecv(got, other))
    for work in works:
        assert work is not None, "both are of the group"
        work.wait(_wait(deadline))
    return bytes(got.numpy())


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
