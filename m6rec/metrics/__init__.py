"""Metrics: usable alone on anyone's lists."""
