"""Coordinates the rounds of a federation."""
