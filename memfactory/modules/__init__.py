"""Memory skills: each one builds messages, asks a model and parses what it wrote. Never sees a reward.

Importing this package registers the project's own modules.
"""

from memfactory.modules import answerer as answerer
from memfactory.modules import memory_agent as memory_agent
from memfactory.modules import memory_extractor as memory_extractor
from memfactory.modules import memory_retriever as memory_retriever
from memfactory.modules import memory_updater as memory_updater
from memfactory.modules import reflector as reflector
from memfactory.modules import reranker as reranker
from memfactory.modules import rmm_reranker as rmm_reranker
from memfactory.modules import verbatim as verbatim
