"""Conversation: what to recommend at a moment of a dialogue, and what to say."""
