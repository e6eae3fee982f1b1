"""What server and client must agree on: run configuration, wire messages, update transforms, secure-sum primitives."""
