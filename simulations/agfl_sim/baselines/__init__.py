"""Each owner alone, and all text in one place, beside the federation."""
