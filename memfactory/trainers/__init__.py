"""Loops that change weights. They know no reward component, stage or prompt by name."""
