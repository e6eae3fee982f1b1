"""Who owners are: names, keys, the roster, signatures."""
