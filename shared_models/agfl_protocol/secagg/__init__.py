"""Secure-sum primitives: no Flower, no torch, no I/O."""
