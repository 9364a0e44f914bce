"""Small rivals of the item graph, in the same harness: each is one way to predict, or to start, a new item."""
