"""How a sum moves the model."""
