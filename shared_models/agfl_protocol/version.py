"""Which protocol this side speaks: every message says it, and both sides must speak the same one."""

PROTOCOL_VERSION = 3
