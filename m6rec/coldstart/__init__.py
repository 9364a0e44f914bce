"""New items and new users: the few numbers that depend on one of them, made from what little is known."""
