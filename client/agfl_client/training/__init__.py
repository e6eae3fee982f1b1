"""Local training, and what it leaves behind."""
