"""Memory skills: each one builds messages, asks a model and parses what it wrote. Never sees a reward.

Importing this package registers the project's own modules.
"""

from memfactory.modules import memory_agent as memory_agent
