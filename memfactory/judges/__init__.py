"""Judging an answer against gold ones. Knows no agent and no training.

Importing this package registers the rules.
"""

from memfactory.judges import exact as exact
from memfactory.judges import published as published
