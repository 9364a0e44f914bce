"""Evaluation: one harness for ours and the baselines."""
