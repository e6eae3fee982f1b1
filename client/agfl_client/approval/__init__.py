"""What an owner is asked before a run, and what it answered."""
