"""What a simulated owner draws: the same again from the same secret, and from no other."""

from __future__ import annotations

from agfl_protocol.secagg import shamir
from agfl_sim.engines.workers.repeated_draws import RepeatedDraws


def drawn(secret: bytes) -> list[bytes]:
    draws = RepeatedDraws()
    draws.begin(secret)
    private = draws.channel_key().private_bytes_raw()
    own = shamir.random_secret(draws)
    return [private, own, *shamir.split(own, 3, [1, 2, 3, 4], draws)]


def test_the_same_secret_draws_the_same_and_another_one_nothing_alike() -> None:
    one, other = bytes(32), bytes(31) + b"1"
    assert drawn(one) == drawn(one)
    assert len({*drawn(one), *drawn(other)}) == 12
    assert all(shamir.is_canonical(element) for element in drawn(one)[1:])


def test_shares_of_what_was_drawn_rebuild_it() -> None:
    _, own, *shares = drawn(bytes(32))
    points = [1, 3, 4]
    assert shamir.combine([shares[point - 1] for point in points], shamir.weights(points)) == own
