"""Trains on private data and decides what may leave."""
