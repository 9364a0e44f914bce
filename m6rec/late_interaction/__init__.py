"""Late interaction: segments alone through the lower layers, cached, and together through the top ones alone."""
