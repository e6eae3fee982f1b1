"""What a run did, as one HTML page: for `agfl-server`, and for `agfl-simulate`, which adds sections of its own."""
