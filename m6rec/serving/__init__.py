"""Serving: one request is a graph of stages, each batched, bounded and watched by itself. Loads no torch."""
