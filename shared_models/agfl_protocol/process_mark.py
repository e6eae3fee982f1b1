"""The header by which a server tells two processes of one node apart."""

from __future__ import annotations

PROCESS_HEADER = "agfl-process"
PROCESS_MARK_BYTES = 16  # in hexadecimal
SUPERSEDED_STATUS = 409  # another process of this node came later, and this one must end
