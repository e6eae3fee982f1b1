"""A simulation's own sections of the report."""
