"""Generation: an explanation, a title, a query, a description; the kinds are prompts."""
