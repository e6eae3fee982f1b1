"""Clients in worker processes of this machine, of which each has an interpreter and a lock of its own."""
