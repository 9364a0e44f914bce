"""Data: from a user's log to a dataset folder, and from the folder to arrays."""
