"""The owner's part in a secure sum."""
