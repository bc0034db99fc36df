"""Agents: modules assembled into something that writes a memory and reads from it. Never see a gold answer or a reward.

Importing this package registers the project's own agents (and, through them, modules).
"""

from memfactory.agents import anchors as anchors
from memfactory.agents import memory_agent as memory_agent
from memfactory.agents import memory_r1_agent as memory_r1_agent
from memfactory.agents import rmm_agent as rmm_agent
