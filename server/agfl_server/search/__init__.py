"""Architectures race, and the best one goes on."""
