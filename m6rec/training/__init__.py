"""Training: one accelerate loop and what feeds and saves it."""
