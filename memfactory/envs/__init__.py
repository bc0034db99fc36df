"""Envs: raw data into examples, outputs into rewards. Never call a module; see gold answers and never show them.

Importing this package registers the project's own envs.
"""

from memfactory.envs import longcontext as longcontext
from memfactory.envs import memory_bank as memory_bank
from memfactory.envs import rerank_bank as rerank_bank
