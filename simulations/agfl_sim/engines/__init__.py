"""Where the clients of a simulation work."""
