"""The rounds of a run: the loop, what it carries along, and whom it asks."""
