"""Methods whose owners keep state from round to round."""
