"""Once a large message was answered nothing of it is left: waiting for Python to collect garbage costs models."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tests.server.test_cut_transfer import echo, exchanged

from agfl_protocol.messages.wire import content_bytes

if TYPE_CHECKING:
    from tests.server.conftest import Site

SIZE = 3 * 2**20  # numbers, 12 MiB


def test_an_exchange_leaves_no_part_of_its_arrays_as_garbage(site: Site) -> None:
    """Both sides are in this process."""
    content = site.floats(SIZE)
    with site.superlink() as server, site.node_thread("alice", server.port, echo()):
        gc.collect()
        gc.disable()
        try:
            assert content_bytes(exchanged(site, server, content)) > 4 * SIZE
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            held = {id(part): part for one in gc.garbage for part in gc.get_referents(one) if isinstance(part, bytes)}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert [len(part) for part in held.values() if len(part) > 2**18] == []
