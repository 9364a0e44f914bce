"""The embedded foundation: weights, tokenizer and card, made by ``scripts/foundation.py``; it holds no code."""
