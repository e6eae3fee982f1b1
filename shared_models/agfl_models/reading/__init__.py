"""An owner's files: which of them are read, in which encoding and form, and what was found in them."""
