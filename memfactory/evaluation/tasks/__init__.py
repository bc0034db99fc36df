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
