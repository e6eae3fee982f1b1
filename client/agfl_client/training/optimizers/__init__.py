"""The optimizers that a run may name for local training."""
