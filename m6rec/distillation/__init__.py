"""Distillation: a student learns what a teacher knows."""
