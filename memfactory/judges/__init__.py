"""Judging an answer against gold ones. Knows no agent and no training.

Importing this package registers the rules and the judges' prompts.
"""

from memfactory.judges import benchmarks as benchmarks
from memfactory.judges import exact as exact
from memfactory.judges import judge_prompts as judge_prompts
from memfactory.judges import published as published
