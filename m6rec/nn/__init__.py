"""Pure tensor functions and small modules: no model, no config."""
