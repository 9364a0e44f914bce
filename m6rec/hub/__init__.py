"""Runs on the Hugging Face Hub: what goes there, what it says of itself, and how it comes back."""
