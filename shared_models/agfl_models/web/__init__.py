"""The model for a browser and for programs: a page, a JSON endpoint, and what guards them."""
