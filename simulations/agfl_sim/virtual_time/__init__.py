"""A time that is made up, in which owners' devices are fast or slow, and there or away."""
