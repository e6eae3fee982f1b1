"""Metrics of generated text, spans and classes, each a function of sums over owners."""
