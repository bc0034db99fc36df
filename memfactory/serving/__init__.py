"""Agents at work: a conversation in a terminal that is remembered. Knows no training and no evaluation."""
