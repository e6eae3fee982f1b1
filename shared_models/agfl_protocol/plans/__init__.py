"""What owners approve before a run."""
