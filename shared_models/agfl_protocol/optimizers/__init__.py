"""How the server steps from the mean update of a round: each server optimizer with its settings in one file."""
