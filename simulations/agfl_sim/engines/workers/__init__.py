"""Clients in workers, each an interpreter with a lock of its own: processes of this machine, or actors of Ray."""
