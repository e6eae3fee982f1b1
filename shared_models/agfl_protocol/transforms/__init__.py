"""Update transforms: what a client does to an update and what the server undoes, both halves in one file."""
