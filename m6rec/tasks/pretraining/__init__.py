"""Pretraining: M6's two objectives over everything in a dataset that is text."""
