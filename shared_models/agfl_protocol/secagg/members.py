"""U1 as one side sees it: the members of an exchange, what they announced, and the context that binds all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agfl_protocol.secagg.context import members_context
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.identity import SIGN_KEYS, SigningRoster
from agfl_protocol.secagg.keys import check_public_key
from agfl_protocol.secagg.messages import KeyRecord
from agfl_protocol.secagg.parameters import MIN_HONEST, Parameters


@dataclass(frozen=True)
class Members:
    """U1, sorted by name.

    points: name -> place in U1 from 1, the point at which shares for this holder are evaluated; ctx1: their context.
    """

    records: Mapping[str, KeyRecord]
    points: Mapping[str, int]
    ctx1: bytes

    @staticmethod
    def of(ctx0: bytes, records: Iterable[KeyRecord]) -> Members:
        """Return the members that sent `records`, in whatever order these come."""
        by_name = {record.name: record for record in sorted(records, key=lambda record: record.name)}
        points = {name: point for point, name in enumerate(by_name, start=1)}
        return Members(by_name, points, members_context(ctx0, by_name.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """U1."""
        return tuple(self.records)

    def others(self, name: str) -> tuple[str, ...]:
        """U1 without `name`."""
        return tuple(other for other in self.records if other != name)

    def bind(self, own: Parameters) -> Parameters:
        """Return `own` with the largest `min_cohort` of U1: who asks for more company than others has it, or no sum."""
        return replace(own, min_cohort=max(own.min_cohort, *(record.min_cohort for record in self.records.values())))


def check_record(record: KeyRecord, ctx0: bytes, roster: SigningRoster, parameters: Parameters) -> None:
    """Check that a member of the roster announced these keys, sound ones, in this exchange, and has the same c.

    Raises:
        ProtocolViolation: names the member.
    """
    roster.verify(record.name, record.signature, SIGN_KEYS, ctx0, *record.parts)
    check_public_key(record.channel_key, record.name)
    check_public_key(record.mask_key, record.name)
    require(
        record.max_colluders == parameters.max_colluders,
        "AGFL-SECURE-008",
        f"max_colluders: must be {parameters.max_colluders} as here, {record.name!r} has {record.max_colluders}",
    )
    least, most = parameters.max_colluders + MIN_HONEST, len(roster)
    require(
        least <= record.min_cohort <= most,
        "AGFL-SECURE-009",
        f"min_cohort: must be in [{least}, {most}], {record.name!r} has {record.min_cohort}",
    )
