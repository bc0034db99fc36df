"""Measuring an agent on held-out examples, with intervals. Knows no training."""
