"""`memfactory judge`: a judge over the attempts of a finished evaluation, without making any of them anew.

First the judge is measured on answers known to be wrong or right (`calibration`), then it judges every attempt; both go to
`judgments.jsonl` and neither is asked twice. attempts.jsonl is only read: no score changes. Knows no agent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import write_json, write_text
from memfactory.common.flags import option
from memfactory.common.progress import Lines
from memfactory.common.ranges import check_ranges
from memfactory.common.registry import import_plugins
from memfactory.engines.api import PREFIX, APIChat
from memfactory.evaluation.calibration import known_answers
from memfactory.evaluation.html import REPORT, write_html
from memfactory.evaluation.judge_questions import Evaluated, evaluated, folders_of
from memfactory.evaluation.judged import Row, judged_markdown, judged_notes, judged_rows, judged_table
from memfactory.evaluation.judgments import Judgments, Line, Place, case_hash, line_of, read_judgments
from memfactory.evaluation.ledger import GREEDY, SAMPLED
from memfactory.judges.judge_prompts import DEFAULT
from memfactory.judges.judgment import Case, Judgment
from memfactory.judges.llm import LLMJudge

log = logging.getLogger(__name__)

USAGE = "memfactory judge FOLDER --judge api:MODEL [--prompt NAME@VERSION] [--votes 3]"
CHOICES = {"all": (GREEDY, SAMPLED), "greedy": (GREEDY,), "sampled": (SAMPLED,)}


@dataclass
class JudgeConfig:
    """Options of `memfactory judge`."""

    judge: str = option(PREFIX, "Who judges: api:MODEL at OPENAI_BASE_URL; api: alone is LLM_MODEL.")
    prompt: str = option(DEFAULT, "What it is asked: a name and version; `memfactory list` shows them.")
    votes: int = option(1, "How often each answer is judged, an odd number.", least=1)
    temperature: float = option(0.0, "Of the judge; above 0 several votes say how sure it is.", least=0)
    max_tokens: int = option(512, "Most tokens of a reply.", least=1)
    attempts: str = option("all", "Which attempts: all, greedy or sampled.")
    calibration: int = option(
        40, "Questions of each data set that known-wrong and known-right answers are made of; 0: the judge is not measured.", least=0
    )
    timeout: float = option(120.0, "Seconds that one try at the server may take.", above=0)
    retries: int = option(5, "Further tries where the server fails.", least=0)
    concurrency: int = option(64, "Requests to the server at a time.", least=1)
    api_options: str = option("{}", 'More of every request to a server, as JSON, such as {"reasoning_effort": "low"}.')
    plugins: list[str] = option([], "Python files or modules that register your own parts.", "--import")

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self))
        if self.votes % 2 == 0:
            raise ConfigError(f"--votes {self.votes}: an even number of votes can be tied. Give an odd one.")
        if self.attempts not in CHOICES:
            raise unknown_name("--attempts", self.attempts, CHOICES)
        if not self.judge.startswith(PREFIX):
            raise ConfigError(f"--judge {self.judge!r}: a judge is behind an API. Write {PREFIX}MODEL.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """One thing to judge and where its judgment goes."""

    place: Place
    case: Case
    known: bool


def judge_all(root: Path, config: JudgeConfig, console: Console) -> int:
    """The command: judge every data set under `root`, print the table, write `judged.json` and `judged.md`, redraw `report.html`."""
    import_plugins(config.plugins)
    folders = folders_of(root)
    chat = APIChat(config.judge, timeout=config.timeout, max_retries=config.retries, concurrency=config.concurrency)
    judge = LLMJudge(
        config.judge, chat, config.max_tokens, prompt=config.prompt, votes=config.votes, temperature=config.temperature
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lines = Lines(bar=console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=0)

        def planned(count: int) -> None:
            progress.update(task, total=(progress.tasks[0].total or 0) + count)

        def done() -> None:
            progress.advance(task)
            lines.tell(f"judging: {progress.tasks[0].completed:.0f} of {progress.tasks[0].total:.0f}")

        rows = judge_folders(folders, judge, config, planned, done)
    chat.close()
    console.print(judged_table(rows))
    for note in judged_notes(rows):
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)
    write_json(root / "judged.json", {"judge": judge.identity(), "rows": rows})
    write_text(root / "judged.md", judged_markdown(rows))
    if (root / REPORT).is_file():
        write_html(root)
    return 0 if any(row["coverage"] for row in rows) else 1  # no answer got a verdict


def judge_folders(
    folders: Sequence[Path],
    judge: LLMJudge,
    config: JudgeConfig,
    on_planned: Callable[[int], Any] | None = None,
    on_done: Callable[[], Any] | None = None,
) -> list[Row]:
    """Judge what `judge` has not judged yet in each data set's folder; the rows of the judged table, by folder and metric.

    A calibration answer that it judged in one folder is not asked again for the next, which is of the same questions.
    """
    measured = _measured(folders)
    rows: list[Row] = []
    for folder in folders:
        found = evaluated(folder)
        with Judgments(folder, judge.identity()) as ledger:
            asked = [one for one in _asked(found, judge, ledger.judge, config) if not ledger.known(one.place, one.case)]
            missing = []
            for one in asked:
                line = measured.get((ledger.judge, case_hash(one.case))) if one.known else None
                if line is None:
                    missing.append(one)
                else:  # said of the same answer in another model's folder
                    example, kind, number, question, _ = one.place
                    ledger.add(replace(line, example=example, kind=kind, number=number, question=question))
            if on_planned:
                on_planned(len(missing))
            _judge(judge, missing, ledger, on_done)
            measured |= {
                (line.judge, line.case): line for line in ledger.lines.values() if line.answer is not None and line.score is not None
            }
        rows += judged_rows(found, ledger.judge, CHOICES[config.attempts])
    return rows


def _judge(judge: LLMJudge, missing: Sequence[_Asked], ledger: Judgments, on_done: Callable[[], Any] | None) -> None:
    def done(at: int, judgment: Judgment) -> None:
        ledger.add(line_of(missing[at].place, missing[at].case, judgment, missing[at].known))
        if on_done:
            on_done()

    judge.judge([one.case for one in missing], done)


def _asked(found: Evaluated, judge: LLMJudge, name: str, config: JudgeConfig) -> list[_Asked]:
    """The calibration answers first, then every answer of the attempts that this prompt can judge."""
    known = known_answers(found.every_question(), config.calibration) if config.calibration else []
    asked = [_Asked((*one.place, name), one.case, True) for one in known]
    for kind in CHOICES[config.attempts]:
        for answer in found.answers(kind):
            question = answer.question
            if answer.text is not None:
                case = question.case(answer.text)
                if judge.prompt.judges(case.type):
                    asked.append(_Asked((question.example, kind, answer.number, question.number, name), case, False))
    return asked


def _measured(folders: Sequence[Path]) -> dict[tuple[str, str], Line]:
    """{(judge, case): its judgment} of calibration answers in all folders."""
    found: dict[tuple[str, str], Line] = {}
    for folder in folders:
        _, lines = read_judgments(folder)
        found |= {(line.judge, line.case): line for line in lines.values() if line.answer is not None and line.score is not None}
    return found
