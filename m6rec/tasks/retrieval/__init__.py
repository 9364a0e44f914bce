"""Retrieval: the nearest items of the whole catalogue to what a user did."""
