"""Recipes: one yaml a task, shipped in the wheel."""
