"""How a node calls the server."""
