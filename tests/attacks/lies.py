"""Lies of one owner, patched into the genuine client: 32 kinds, each told by one node of this process alone."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from agfl_client.node import Node
from agfl_client.secure import masking
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.methods.clipping import ABOVE, CLIPPED, Clipping
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import Update

_FULL = 2**64 - 1


@dataclass
class Liar:
    """One node whose code lies while it answers, from a round on; the others run the same code and do not."""

    patch: pytest.MonkeyPatch
    owners: int
    since: int = 1
    _here: threading.local = field(default_factory=threading.local)
    over: threading.Event = field(default_factory=threading.Event)
    acts: dict[str, Callable[[Message], Message]] = field(default_factory=dict)

    def wrap(self, app: ClientApp) -> ClientApp:
        """Return the app of the liar's node."""
        return _Lying(app, self)

    @contextmanager
    def lying(self) -> Iterator[None]:
        """Lie in what this thread does now."""
        self._here.on = True
        try:
            yield
        finally:
            self._here.on = False

    def replace(self, owner: Any, attribute: str, lie: Callable[..., Any]) -> None:
        """Have `lie(genuine, *args)` done in place of an attribute, by the liar alone."""
        genuine = getattr(owner, attribute)

        def either(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._here, "on", False):
                return lie(genuine, *args, **kwargs)
            return genuine(*args, **kwargs)

        self.patch.setattr(owner, attribute, either)

    def lanes(self, change: Callable[[UpdateCodec, Lanes], None]) -> None:
        """Change the lanes before they are masked."""

        def write(genuine: Any, codec: UpdateCodec, *given: Any) -> Lanes:
            lanes: Lanes = genuine(codec, *given)
            change(codec, lanes)
            return lanes

        self.replace(UpdateCodec, "write", write)

    def header(self, name: str, value: Callable[[UpdateCodec], int]) -> None:
        """Set one metric."""

        def change(codec: UpdateCodec, lanes: Lanes) -> None:
            lanes[2 + codec.quantization.header.metrics.index(name)] = value(codec)

        self.lanes(change)

    def fields(self, value: Callable[[int], Any]) -> None:
        """Replace all lanes after the header."""

        def change(codec: UpdateCodec, lanes: Lanes) -> None:
            size = codec.quantization.header.size
            lanes[size:] = value(lanes.size - size)

        self.lanes(change)

    def gain(self, factor: float) -> None:
        """Multiply the update, and do not clip."""

        def encode(genuine: Any, clipping: Clipping, update: Update, *given: Any) -> Update:
            votes = dict.fromkeys((CLIPPED, *ABOVE), 0.0)
            return replace(update, gain=update.gain * factor, metrics={**update.metrics, **votes})

        self.replace(Clipping, "encode", encode)

    def reply(self, trip: str, change: Callable[[Any], Any]) -> None:
        """Change what is said in a trip before it is written."""
        self.replace(secure_wire, f"write_{trip}_reply", lambda genuine, reply: genuine(change(reply)))

    def record(self, trip: str, change: Callable[[RecordDict, Any], RecordDict]) -> None:
        """Change the record of a trip."""
        self.replace(secure_wire, f"write_{trip}_reply", lambda genuine, reply: change(genuine(reply), reply))

    def vector(self, change: Callable[[Lanes], Any]) -> None:
        """Send another array than the masked lanes."""

        def written(record: RecordDict, reply: Any) -> RecordDict:
            numbers = reply.exchange
            scalars = {"run_id": numbers.run_id, "round": numbers.round, "exchange": numbers.exchange}
            return wire.new_record(scalars, {"lanes": change(reply.lanes)})

        self.record("mask", written)


class _Lying(ClientApp):
    """An app that lies while it answers, or answers otherwise by the type of the message."""

    def __init__(self, app: ClientApp, liar: Liar) -> None:
        super().__init__()
        self._app, self._liar = app, liar

    def __call__(self, message: Message, context: Context) -> Message:
        config = message.content.config_records.get("config")
        if config is None or int(str(config.get("round", 0))) < self._liar.since:
            return self._app(message, context)
        act = self._liar.acts.get(message.metadata.message_type)
        with self._liar.lying():
            return act(message) if act is not None else self._app(message, context)


def _act(liar: Liar, kind: str, act: Callable[[Message], Message]) -> None:
    liar.acts[kind] = act


def _silent(liar: Liar) -> Callable[[Message], Message]:
    def wait(message: Message) -> Message:
        liar.over.wait(600)
        return Message(Error(5, "Node Unavailable"), reply_to=message)

    return wait


def _garbage(message: Message) -> Message:
    arrays = ArrayRecord({"lanes": Array(np.zeros((3, 3), np.complex128))})
    config = ConfigRecord({"version": 1, "x": bytes(1000)})
    return Message(RecordDict({"config": config, "arrays": arrays}), reply_to=message)


def _huge(record: RecordDict, reply: Any) -> RecordDict:
    array = record.array_records["arrays"]["lanes"]
    array.__dict__["shape"] = (2**40,)
    return record


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def _pickled(record: RecordDict, reply: Any) -> RecordDict:
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n"
    array = record.array_records["arrays"]["lanes"]
    array.__dict__["data"] = head + pickle.dumps(_Evil())
    return record


def _other_exchange(liar: Liar) -> None:
    for trip in ("advertise", "share", "mask", "agree", "unmask"):
        liar.reply(trip, lambda r: replace(r, exchange=replace(r.exchange, exchange=r.exchange.exchange + 1)))


def _sealed(liar: Liar, change: Callable[[Any], Any]) -> None:
    liar.replace(masking, "_seal", lambda genuine, *args: change(genuine(*args)))


def _held(liar: Liar, change: Callable[[Any], Any]) -> None:
    liar.replace(masking, "_seal", lambda genuine, d, h, c, k, shares: genuine(d, h, c, k, change(shares)))


def _inconsistent(liar: Liar) -> None:
    def share(genuine: Any, state: Any, request: Any) -> Any:
        after, reply = genuine(replace(state, self_secret=b"\1" * 32), request)
        return replace(after, self_secret=state.self_secret), reply

    liar.replace(masking, "share", share)
    _act(liar, secure_wire.UNMASK, lambda message: Message(Error(5, "Node Unavailable"), reply_to=message))


def _nan(liar: Liar) -> None:
    def update(genuine: Any, *args: Any) -> Update:
        found: Update = genuine(*args)
        return replace(found, delta=np.full_like(found.delta, np.nan))

    liar.replace(Node, "_update", update)


def _set(index: int | slice, value: int) -> Callable[[UpdateCodec, Lanes], None]:
    return lambda codec, lanes: lanes.__setitem__(index, value)


def _words(size: int) -> Any:
    return np.random.default_rng().integers(0, _FULL, size, np.uint64)


def _fails(code: int, reason: str) -> Callable[[Message], Message]:
    return lambda message: Message(Error(code, reason), reply_to=message)


def other_rings(liar: Liar) -> None:
    """Say 2 where the vector fills 1 ring, and 1 where it fills more."""
    _held(liar, lambda shares: replace(shares, rings=3 - min(shares.rings, 2)))


LIES: dict[str, Callable[[Liar], None]] = {
    # the header
    "canary": lambda liar: liar.lanes(_set(0, 2)),
    "weight": lambda liar: liar.lanes(_set(1, 2**60)),
    "metric": lambda liar: liar.lanes(_set(2, 2**63)),
    "metrics": lambda liar: liar.lanes(_set(slice(2, 8), 2**40)),
    "loss": lambda liar: liar.lanes(_set(2, 2**40)),
    "diverged, all": lambda liar: liar.header(DIVERGED, lambda codec: liar.owners * 2**20),
    "diverged, 2^20": lambda liar: liar.header(DIVERGED, lambda codec: 2**40),
    # the update
    "scaled": lambda liar: liar.gain(-1e6),
    "turned": lambda liar: liar.gain(-1.0),
    "full fields": lambda liar: liar.fields(lambda size: _FULL),
    "random fields": lambda liar: liar.fields(_words),
    "not a number": _nan,
    # the masked vector
    "short": lambda liar: liar.vector(lambda lanes: lanes[:-1]),
    "long": lambda liar: liar.vector(lambda lanes: np.concatenate([lanes, lanes])),
    "floats": lambda liar: liar.vector(lambda lanes: lanes.astype(np.float64)),
    "matrix": lambda liar: liar.vector(lambda lanes: lanes.reshape(1, -1)),
    "huge shape": lambda liar: liar.record("mask", _huge),
    "pickle": lambda liar: liar.record("mask", _pickled),
    "wrong mask": lambda liar: liar.vector(lambda lanes: _words(lanes.size)),
    # keys, shares, signatures, openings
    "other exchange": _other_exchange,
    "other name": lambda liar: liar.reply("advertise", lambda r: replace(r, record=replace(r.record, name="owner-00"))),
    "strict": lambda liar: liar.reply("advertise", lambda r: replace(r, record=replace(r.record, min_cohort=99))),
    "bad shares": lambda liar: _sealed(liar, lambda sealed: replace(sealed, sealed=bytes(81))),
    "bad hashes": lambda liar: _sealed(liar, lambda sealed: replace(sealed, self_hash=bytes(16))),
    "inconsistent": _inconsistent,
    "rings": lambda liar: _held(liar, lambda shares: replace(shares, rings=7)),
    "bad signature": lambda liar: liar.reply("agree", lambda r: replace(r, signature=bytes(64))),
    "bad opening": lambda liar: liar.reply(
        "unmask", lambda r: replace(r, self_secret=b"\2" * 32, shares=tuple(b"\3" * 32 for _ in r.shares))
    ),
    # no answer, or none that is one
    "silent at first": lambda liar: _act(liar, wire.TRAIN, _silent(liar)),
    "silent later": lambda liar: _act(liar, secure_wire.MASK, _silent(liar)),
    "error": lambda liar: _act(liar, secure_wire.SHARE, _fails(100, "no")),
    "garbage": lambda liar: _act(liar, secure_wire.AGREE, _garbage),
}
