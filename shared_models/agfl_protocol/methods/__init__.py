"""What methods have owners send and keep."""
