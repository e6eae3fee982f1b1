"""The modular model."""
