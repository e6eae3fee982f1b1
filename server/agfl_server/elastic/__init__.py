"""The rings of an elastic model on the server: which of them are trained, and what becomes of those that are not."""
