"""Several owners' models trained together, as one computation on stacked parameters."""
