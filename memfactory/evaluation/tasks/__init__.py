"""Tasks: a benchmark's file becomes samples with questions, each with the rule that scores it. One short file each.

Importing this package registers the project's own tasks and the env that shows them to agents.
"""

from memfactory.evaluation.tasks import babilong as babilong
from memfactory.evaluation.tasks import env as env
from memfactory.evaluation.tasks import hotpotqa as hotpotqa
from memfactory.evaluation.tasks import locomo as locomo
from memfactory.evaluation.tasks import longmemeval as longmemeval
from memfactory.evaluation.tasks import memoryagentbench as memoryagentbench
from memfactory.evaluation.tasks import musique as musique
from memfactory.evaluation.tasks import ruler as ruler
from memfactory.evaluation.tasks import synth as synth
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_documents, of_text, text_of

__all__ = ["Loaded", "Question", "Sample", "Task", "of_documents", "of_text", "read_records", "text_of"]
