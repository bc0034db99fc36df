"""Promise: a judge is pinned and measured, its failures are counted and never become scores, and judging changes no attempt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from openai_server import reply, says, serving, stalls
from rich.console import Console

from memfactory.cli import main
from memfactory.common.errors import ConfigError, DataError, InfrastructureError, MissingFileError, ServerTimeout, UnknownNameError
from memfactory.common.files import file_hash, read_json, write_json
from memfactory.common.parsing import normalize_squad
from memfactory.common.registry import JUDGE_PROMPT_REGISTRY, SCORER_REGISTRY, TASK_REGISTRY, import_plugins
from memfactory.common.types import Messages, Sampling, Turn
from memfactory.envs.memory_bank import MemoryBankEnv
from memfactory.evaluation.calibration import GOLD, KINDS, SENTENCE, SPECIFIC, VAGUE, known_answers
from memfactory.evaluation.estimates import wilson
from memfactory.evaluation.jobs import Job
from memfactory.evaluation.judge_questions import Question, evaluated, folders_of
from memfactory.evaluation.judged import judged_markdown, judged_notes, judged_table, rows_of
from memfactory.evaluation.judging import JudgeConfig, judge_folders
from memfactory.evaluation.judgments import read_judgments
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger
from memfactory.evaluation.tasks.env import TaskEnv
from memfactory.judges.exact import asks_for_all, needs_all
from memfactory.judges.judge_prompts import ABSTENTION, judge_prompt
from memfactory.judges.judgment import Case
from memfactory.judges.llm import LLMJudge

YES, NO = '{"verdict": "correct"}', '{"verdict": "wrong"}'
CITIES = ["Lima", "Cusco", "Puno", "Tacna", "Piura", "Ica", "Huaraz", "Iquitos"]
Reply = Callable[[str, int], "str | Exception"]


class Judge:
    """A judge's chat model: replies by a function of (prompt, how many it was asked before)."""

    def __init__(self, answer: Reply | str) -> None:
        self.answer: Reply = answer if callable(answer) else lambda prompt, number: answer
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        prompt = messages[0]["content"]
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        said = self.answer(prompt, len(self.prompts) - 1)
        if isinstance(said, Exception):
            raise said
        return Turn(
            stage, (), (), (), said[: sampling.max_tokens], "length" if len(said) > sampling.max_tokens else "stop", trainable=False
        )


def quoted(prompt: str) -> dict[str, Any]:
    """The JSON texts of a prompt's case, by their headings."""
    lines = [line.split(": ", 1) for line in prompt.split("\n") if ": " in line]
    return {name: json.loads(text) for name, text in lines if text[0] in '["'}


def honest(prompt: str, number: int) -> str:
    """Right if an accepted answer stands in the answer, as whole words."""
    case = quoted(prompt)
    answer, golds = case.pop("Answer to judge"), [text for key, text in case.items() if key != "Question"][0]
    return YES if any(f" {normalize_squad(gold)} " in f" {normalize_squad(answer)} " for gold in golds) else NO


def folder_of(root: Path, model: str = "tiny", said: Callable[[str], str] = lambda gold: f"\\boxed{{{gold}}}", k: int = 0) -> Path:
    """What `memfactory eval` leaves of eight questions; every second answer is `said` of the gold, the others say Quito."""
    data = root / "facts.json"
    write_json(
        data, [{"context": "c", "input": f"Which city did Ann see in year {at}?", "answers": [city]} for at, city in enumerate(CITIES)]
    )
    folder = root / "out" / model / "facts"
    names = [f"facts/{at}" for at in range(len(CITIES))]
    attempts = []
    for at, name in enumerate(names):
        for kind, number in [(GREEDY, 0), *((SAMPLED, n) for n in range(k))]:
            right = (at + number) % 2 == 0
            attempts.append(
                Attempt(name, kind, number, "ok", float(right), answers=[said(CITIES[at]) if right else "\\boxed{Quito}"])
            )  # fmt: skip
    with Ledger(folder, {"data": {"sha256": file_hash(data)}, "model": model}) as ledger:
        ledger.append(attempts)
    write_json(folder / "job.json", asdict(Job(model, model, "facts", str(data), str(folder), k=k)) | {"examples": names})
    return folder


def judged(folder: Path, chat: Judge, calibration: int = 4, attempts: str = "all", **options: Any) -> dict[str, Any]:
    """The greedy row after judging; with it, proof that no attempt changed."""
    before = (folder / "attempts.jsonl").read_bytes()
    rows = judge_folders([folder], LLMJudge("api:judge", chat, **options), JudgeConfig(calibration=calibration, attempts=attempts))
    assert (folder / "attempts.jsonl").read_bytes() == before
    assert [row["rule_score"] for row in rows if row["metric"] == GREEDY] == [0.5], "the deterministic score is what it was"
    return rows[0]


# What judges are asked


@pytest.mark.parametrize("name", list(JUDGE_PROMPT_REGISTRY))
def test_every_prompt_quotes_its_case_and_asks_for_one_strict_verdict(name: str) -> None:
    prompt = judge_prompt(name)
    for type_ in prompt.wordings:
        text = prompt.text(Case('Who "is" <<golds>>?', ("a\nb",), "-", type_), "{1}")
        case = quoted(text)
        assert case.pop("Question") == 'Who "is" <<golds>>?' and case.pop("Answer to judge") == "{1}" and list(case.values()) == [["a\nb"]]
        assert YES[1:-1] in text and NO[1:-1] in text and "one JSON object and nothing else" in text


def test_prompts_are_pinned_by_hash() -> None:
    # A wording that changes must get a new version: judgments under the old one are not of the new one.
    assert {name: judge_prompt(name).sha256 for name in JUDGE_PROMPT_REGISTRY if name.endswith("@1")} == {
        "judge_default@1": "59789e9d86648a9e",
        "judge_locomo@1": "b6b7b709ebfa3bee",
        "judge_longmemeval@1": "83bcf996e22130b0",
    }


def test_longmemevals_wordings_go_by_the_type_of_question() -> None:
    prompt = judge_prompt("judge_longmemeval@1")
    types = ("multi-session", "single-session-user", "temporal-reasoning", "knowledge-update", "single-session-preference", ABSTENTION)
    wordings = {type_: prompt.text(Case("q", ("g",), "", type_), "a") for type_ in types}
    assert wordings["multi-session"] == wordings["single-session-user"] and len(set(wordings.values())) == 5
    assert "off by one" in wordings["temporal-reasoning"] and "Rubric" in wordings["single-session-preference"]
    assert prompt.judges(ABSTENTION) and not judge_prompt("judge_locomo@1").judges(ABSTENTION)


def test_an_unknown_prompt_names_the_known_and_odd_options_say_why() -> None:
    with pytest.raises(UnknownNameError, match=r"judge_locomo@1"):
        LLMJudge(chat=Judge(YES), prompt="judge_locomo@2")
    with pytest.raises(ConfigError, match="odd number of votes, got 2"):
        LLMJudge(chat=Judge(YES), votes=2)
    with pytest.raises(ConfigError, match="Write api:MODEL"):
        JudgeConfig(judge="gpt")


def test_ones_own_prompt_is_registered_by_name(forgotten_parts: None) -> None:
    JUDGE_PROMPT_REGISTRY.register("mine@1")(lambda: {"": "<<question>> <<golds>> <<answer>>"})
    chat = Judge(YES)
    assert LLMJudge(chat=chat, prompt="mine@1").scores(["q"], [["g"]], ["a"]) == [1.0] and chat.prompts == ['"q" ["g"] "a"']


# Votes


def test_votes_are_kept_raw_and_have_streams_of_their_own() -> None:
    replies = [YES, NO, "well", YES, YES, NO]
    chat = Judge(lambda prompt, number: replies[number])
    judge = LLMJudge(chat=chat, votes=3, temperature=0.7)
    (one,) = judge.judge([Case("q", ("g",), "a")])
    assert [vote.reply for vote in one.votes] == [YES, NO, "well"] and [vote.failure for vote in one.votes] == ["", "", "no_verdict"]
    assert math.isnan(one.score), "the vote that was lost could have turned it"
    assert judge.judge([Case("q", ("g",), "a")])[0].score == 1.0
    assert len({sampling.stream for sampling in chat.samplings[:3]}) == 3 and {s.temperature for s in chat.samplings} == {0.7}


def test_the_kinds_of_failure_are_told_apart() -> None:
    replies: list[str | Exception] = [ServerTimeout("late"), InfrastructureError("down"), "x" * 9, '{"verd']
    chat = Judge(lambda prompt, number: replies[number])
    found = LLMJudge(chat=chat, max_tokens=8).judge([Case("q", ("g",), text) for text in "abcd"])
    assert [one.votes[0].failure for one in found] == ["timeout", "server", "cut", "no_verdict"] and all(
        math.isnan(one.score) for one in found
    )


def test_a_judge_is_another_where_anything_that_decides_its_verdict_is() -> None:
    identities = [LLMJudge(name, Judge(YES), **options).identity() for name, options in [  # type: ignore[arg-type]
        ("api:a", {}), ("api:b", {}), ("api:a", {"votes": 3}), ("api:a", {"temperature": 0.5}), ("api:a", {"prompt": "judge_locomo@1"}),
        ("api:a", {"max_tokens": 8}),
    ]]  # fmt: skip
    assert len({json.dumps(identity) for identity in identities}) == len(identities) and "prompt_sha256" in identities[0]


def test_a_bank_of_memories_tells_its_judge_the_types_of_questions(tmp_path: Path) -> None:
    write_json(tmp_path / "d.json", [dialogue("d0", ("When?", "May", "temporal-reasoning"))])
    env = MemoryBankEnv(str(tmp_path / "d.json"), reward="llm_judge", judge="api:x", judge_prompt="judge_longmemeval@1", judge_votes=3)
    assert env.judge is not None and env.identity()["judge"]["prompt"] == "judge_longmemeval@1"
    env.judge.chat = chat = Judge(YES)
    env.compute_reward({"answer": ["May"]}, env.collate_fn([env[0]]), 1)
    assert len(chat.prompts) == 3 and "off by one" in chat.prompts[0]


# Known answers


def question(at: int, text: str, gold: str, type_: str = "1", example: str = "") -> Question:
    return Question(example or f"c{at}", at, text, (gold,), (gold,), type_, example or f"c{at}")


GOLDS = {
    "How many cats has Ann?": "3 cats", "When did Bo move to Lima?": "7 May 2023", "Is Ann a doctor?": "Yes",
    "Which instrument does Cy play?": "the red violin", "Where was Di born?": "Tacna", "Where did Ed go?": "Arequipa",
    "What is Flo's dog called?": "Rex", "How many hats?": "twelve", "When did Gus leave?": "in June", "Who sang?": "Maria",
}  # fmt: skip
QUESTIONS = [question(at, text, gold) for at, (text, gold) in enumerate(GOLDS.items())]


def test_known_answers_are_four_a_question_and_what_they_claim_to_be() -> None:
    found = known_answers(QUESTIONS, 99)
    assert len({known.place for known in found}) == len(found) == 4 * len(QUESTIONS)
    for known in found:
        gold, said = (f" {normalize_squad(text)} " for text in (known.question.golds[0], known.case.answer))
        assert (gold in said) == (known.kind in (GOLD, SENTENCE)), known
        assert known.case.question == known.question.text and known.case.golds == known.question.accepted
    texts = {known.case.answer for known in found if known.kind == VAGUE}
    assert len(texts) == len(QUESTIONS) and any("talked about something related to" in text for text in texts)


def test_known_answers_are_the_same_every_time_and_fewer_are_the_first_of_more() -> None:
    all_, again, few = known_answers(QUESTIONS, 10), known_answers(QUESTIONS[::-1], 10), known_answers(QUESTIONS, 3)
    assert [known.question for known in all_] == [known.question for known in again] and all_[:12] == few


def test_a_specific_one_is_altered_or_anothers() -> None:
    found = {known.question.text: known.case.answer for known in known_answers(QUESTIONS, 99) if known.kind == SPECIFIC}
    golds = {q.golds[0] for q in QUESTIONS}
    altered = {text: said for text, said in found.items() if said not in golds}
    assert altered and all(normalize_squad(said) for said in found.values())
    assert 0 < len(altered) < len(found), "both ways are used"


def test_what_has_no_answer_that_could_be_right_or_wrong_is_left_out() -> None:
    rubric = question(0, "Any tips?", "They like tea", "single-session-preference")
    abstain = replace(question(1, "Which boat?", "It was never said"), abstain=True)
    assert known_answers([rubric, abstain, question(2, "q?", " ")], 9) == []
    alone = known_answers([question(3, "Which city is it?", "Tacna")], 9)
    assert SPECIFIC not in {known.kind for known in alone}, "there is nothing to make it of"


# Judging a finished evaluation


def test_an_honest_judge_agrees_with_the_rule_and_passes_its_calibration(tmp_path: Path) -> None:
    folder, chat = folder_of(tmp_path, k=2), Judge(honest)
    row = judged(folder, chat, votes=3)
    assert (row["judged"], row["judged_completed_only"], row["coverage"], row["n"], row["rule"]) == (0.5, 0.5, 1.0, 8, "auto")
    assert (row["judged_low"], row["judged_high"]) == tuple(round(x, 4) for x in wilson(4, 8))
    assert [row[name]["rate"] for name in ("accepts_specific", "accepts_vague", "rejects_gold", "rejects_sentence")] == [0.0] * 4
    assert row["accepts_specific"]["n"] == 4 and row["warnings"] == [] and row["failures"] == {}
    assert (row["per_vote"], row["unanimous"], row["kappa"]) == ([0.5] * 3, 1.0, 1.0)
    assert [row["metric"] for row in rows_of(folder)] == [GREEDY, SAMPLED]
    assert len(chat.prompts) == 3 * (8 * 3 + 4 * 4), "eight questions with three attempts, four with four known answers each"


def test_a_judge_that_always_says_yes_is_seen_beside_its_number(tmp_path: Path) -> None:
    row = judged(folder_of(tmp_path), Judge(YES))
    assert row["judged"] == 1.0 and row["accepts_specific"]["rate"] == row["accepts_vague"]["rate"] == 1.0
    assert row["accepts_specific"]["low"] == round(wilson(4, 4)[0], 4) and row["rejects_gold"]["rate"] == 0.0
    assert row["warnings"] == ["the judge: 100% of 4 known wrong specific answers accepted"]
    text = shown([row])
    assert "1.00 / 1.00 !" in text and "WARNING" in judged_notes([row])[0] and "1.00 / 1.00 !" in judged_markdown([row])


def test_a_judge_that_always_says_no_is_warned_of_too(tmp_path: Path) -> None:
    row = judged(folder_of(tmp_path), Judge(NO))
    assert row["judged"] == 0.0 and row["rejects_gold"]["rate"] == 1.0 and "gold answers rejected" in row["warnings"][0]


@pytest.mark.parametrize(
    ("answer", "failure"), [("I would say so.", "no_verdict"), (InfrastructureError("down"), "server"), (ServerTimeout("late"), "timeout")]
)
def test_a_judge_that_gives_no_verdict_scores_nothing_and_says_so(tmp_path: Path, answer: str | Exception, failure: str) -> None:
    row = judged(folder_of(tmp_path), Judge(lambda prompt, number: answer))
    assert (row["judged"], row["judged_completed_only"], row["coverage"]) == (0.0, None, 0.0)
    assert row["failures"] == {failure: 8} and row["accepts_specific"] == {"rate": None, "low": None, "high": None, "n": 0, "lost": 4}
    assert "no verdict on known-wrong answers" in row["warnings"][0] and f"8 votes lost ({failure})" in row["warnings"][1]
    assert "– / – !" in shown([row])


def test_a_judge_that_fails_now_and_then_is_shown_both_ways_and_asked_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    flaky = Judge(
        lambda prompt, number: InfrastructureError("down") if "year 0" in prompt or "year 2" in prompt else honest(prompt, number)
    )
    row = judged(folder, flaky, calibration=0)
    assert (row["judged"], row["judged_completed_only"], row["coverage"], row["failures"]) == (0.25, 0.3333, 0.75, {"server": 2})
    assert "not measured" in row["warnings"][0]
    again = Judge(honest)
    row = judged(folder, again, calibration=0)
    assert len(again.prompts) == 2 and (row["judged"], row["coverage"]) == (0.5, 1.0)


def test_nothing_is_judged_twice_unless_the_judge_or_the_answer_is_another(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    judged(folder, Judge(honest))
    idle = Judge(honest)
    judged(folder, idle)
    assert idle.prompts == []
    with (folder / "judgments.jsonl").open("a") as file:
        file.write('{"example": "facts/0", "torn')
    judged(folder, idle)
    assert idle.prompts == [], "a torn last line is a judgment that never was"
    other = Judge(honest)
    judged(folder, other, prompt="judge_locomo@1")
    assert len(other.prompts) == 8 + 16 and len(read_judgments(folder)[0]) == 2 and len(rows_of(folder)) == 2
    with Ledger(folder) as ledger:
        ledger.append([Attempt("facts/0", GREEDY, 0, "ok", 1.0, answers=["\\boxed{It was Lima}"])])
    judged(folder, idle)
    assert len(idle.prompts) == 1, "an attempt that was made again is judged again"


def test_two_models_of_one_data_set_share_the_judges_calibration(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path, "a"), folder_of(tmp_path, "b")
    chat = Judge(honest)
    rows = judge_folders(folders_of(tmp_path / "out"), LLMJudge("api:judge", chat), JudgeConfig(calibration=4))
    assert len(chat.prompts) == 8 + 8 + 16 and [row["model"] for row in rows] == ["a", "b"]
    assert rows[0]["accepts_specific"] == rows[1]["accepts_specific"] and rows_of(one)[0] == rows[0] and rows_of(two)[0] == rows[1]


def test_what_infrastructure_lost_has_no_verdict_and_what_says_nothing_is_wrong(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with Ledger(folder) as ledger:
        ledger.append([Attempt("facts/0", GREEDY, 0, "failed", None, error="down"), Attempt("facts/1", GREEDY, 0, "ok", 0.0, answers=[""])])
    chat = Judge(honest)
    row = judge_folders([folder], LLMJudge("api:judge", chat), JudgeConfig(calibration=0))[0]
    assert len(chat.prompts) == 6 and (row["no_answer"], row["coverage"], row["judged"]) == (1, 0.875, 0.375)
    assert row["judged_completed_only"] == round(3 / 7, 4) and row["rule_score"] == 0.375


def test_other_data_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_json(tmp_path / "facts.json", [{"context": "c", "input": "q", "answers": ["Lima"]}])
    with pytest.raises(ConfigError, match="has changed since"):
        evaluated(folder)
    with pytest.raises(MissingFileError, match="memfactory eval"):
        folders_of(tmp_path / "absent")
    (folder / "judgments.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match="line 1 is not as it was written"):
        read_judgments(folder)


def test_what_a_folder_names_is_imported_only_if_the_command_line_names_it(tmp_path: Path, forgotten_parts: None) -> None:
    folder, part = folder_of(tmp_path), tmp_path / "part.py"
    part.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'a').close()\nfrom memfactory.common.registry import ENV_REGISTRY\n"
        "from memfactory.envs.longcontext import LongcontextEnv\n"
        "@ENV_REGISTRY.register('theirs')\nclass Theirs(LongcontextEnv): ...\n",
        encoding="utf-8",
    )
    write_json(folder / "job.json", read_json(folder / "job.json") | {"env": "theirs", "plugins": [str(part)]})
    with pytest.raises(ConfigError, match=f"theirs.*If you trust them: --import {part}"):
        evaluated(folder)
    assert not (tmp_path / "ran").exists()
    import_plugins([str(part)])
    assert len(evaluated(folder).every_question()) == len(CITIES)


def dialogue(name: str, *asked: tuple[str, str, str]) -> dict[str, Any]:
    """A dialogue with (question, gold, type)."""
    session = {"date": "1 May 2023", "turns": [{"id": "D1:1", "speaker": "Ann", "text": "hello"}]}
    rows = [{"question": q, "answers": [gold], "type": kind, "evidence": ["D1:1"], "abstain": gold == "unknown"} for q, gold, kind in asked]
    return {"dialog_id": name, "speakers": ["Ann", "Bo"], "sessions": [session], "questions": rows}


def test_questions_of_conversations_are_judged_one_by_one_clustered_and_abstentions_apart(tmp_path: Path) -> None:
    data = tmp_path / "d.json"
    write_json(data, [dialogue(f"d{n}", ("When?", "May", "2"), ("Who?", "Bo", "4"), ("Which?", "unknown", "5")) for n in range(3)])
    folder = tmp_path / "out" / "m" / "d"
    attempts = [
        Attempt(f"d{n}", GREEDY, 0, "ok", 0.5, questions=[1.0, 0.0, 0.0], answers=["May", "Cy", "never said"][: 3 - n]) for n in range(3)
    ]
    with Ledger(folder, {"data": {"sha256": file_hash(data)}}) as ledger:
        ledger.append(attempts)
    write_json(
        folder / "job.json", asdict(Job("m", "m", "d", str(data), str(folder), env="memory_bank", k=0)) | {"examples": ["d0", "d1", "d2"]}
    )
    chat = Judge(honest)
    row = judge_folders([folder], LLMJudge("api:judge", chat), JudgeConfig(calibration=0))[0]
    assert (row["n"], row["clusters"], row["judged"], row["rule_score"], row["coverage"]) == (6, 3, 0.5, 0.5, 1.0)
    assert row["judged_low"] == row["judged_high"] == 0.5 and "only 3 clusters" in row["warnings"][1] and "abstention_n" not in row
    old = replace(found := evaluated(folder), attempts={a.key: replace(a, questions=[]) for a in attempts})
    assert [old.rule_score(answer) for answer in old.answers(GREEDY)][:2] == [1.0, 0.0] and found.rule == "answer_em", "old ledgers too"
    assert len(chat.prompts) == 5, "an answer that was not reached says nothing: wrong without asking"
    asked = Judge(lambda prompt, number: YES if "recognises" in prompt else NO)
    row = judge_folders([folder], LLMJudge("api:judge", asked, prompt="judge_longmemeval@1"), JudgeConfig(calibration=0))[0]
    assert (row["judged"], row["abstention_n"], row["abstention_judged"]) == (0.0, 3, 0.3333)


def test_a_tasks_own_questions_are_taken_where_it_wrote_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    rows = {f"facts/{at}": [{"id": f"q{at}", "question": "Which?", "answers": [city], "type": "4", "cluster": "one" if at < 4 else "two",
                             "abstain": False}] for at, city in enumerate(CITIES)}  # fmt: skip
    rows["facts/0"][0] |= {"answers": ["Lima", "Puno"], "scorer": "ruler_all@1"}
    write_json(folder / "questions.json", {"task": "mine", "headline": "answer_f1", "examples": rows})
    assert evaluated(folder).every_question()[0].accepted == ("Lima, Puno",), "all of them are asked for"
    rows["facts/0"][0]["answers"] = ["Lima"]
    write_json(folder / "questions.json", {"task": "mine", "headline": "answer_f1", "examples": rows})
    (tmp_path / "facts.json").unlink()
    row = judge_folders([folder], LLMJudge("api:judge", Judge(honest)), JudgeConfig(calibration=2))[0]
    assert (row["rule"], row["clusters"], row["judged"]) == ("answer_f1", 2, 0.5)


def test_attempts_that_a_judge_paid_get_a_rule_beside(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    job = json.loads((folder / "job.json").read_text()) | {"env_options": {"reward": "llm_judge", "judge": "api:x", "log": ["boxed_f1"]}}
    write_json(folder / "job.json", job)
    row = judge_folders([folder], LLMJudge("api:judge", Judge(YES)), JudgeConfig(calibration=0))[0]
    assert (row["rule"], row["rule_score"], row["judged"]) == ("boxed_f1", 0.5, 1.0)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.chdir(tmp_path)


def shown(rows: list[dict[str, Any]], width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(judged_table(rows))
    return out.getvalue()


@pytest.mark.slow
def test_the_command_judges_over_http_and_shows_all_at_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder_of(tmp_path, k=2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setenv("COLUMNS", "80")
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        server.always = says(reply(YES))
        server.script.append(says(reply("Yes!")))
        assert main(["judge", "out", "--judge", "api:big", "--votes", "3", "--calibration", "2", "--retries", "0"]) == 0
    text = capsys.readouterr().out
    assert "1.00 / 1.00 !" in text and "judge_default@1" in text and "WARNING the judge on facts: 100%" in text and "…" not in text
    assert all(len(line) <= 80 for line in text.split("WARNING")[0].split("\n"))
    assert len(server.requests) == 3 * (4 * 2 + 8 * 3) and server.requests[0]["temperature"] == 0
    assert json.loads((tmp_path / "out" / "judged.json").read_text())["rows"][0]["judged"] == 1.0
    assert (tmp_path / "out" / "judged.md").is_file() and all(path.read_bytes() == was for path, was in before.items())


def test_a_slow_server_is_a_timeout_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path)
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        server.always = stalls(0.3)
        assert main(["judge", str(folder), "--judge", "api:big", "--calibration", "0", "--timeout", "0.05", "--retries", "0"]) == 1
    row = json.loads((folder / "judged.json").read_text())["rows"][0]
    assert (row["failures"], row["coverage"], row["rule_score"]) == ({"timeout": 8}, 0.0, 0.5)


@pytest.mark.parametrize(
    ("words", "says_"),
    [
        ([], "takes the folder"),
        (["nowhere"], "holds no evaluated data set"),
        (["out", "--attempts", "some"], "greedy"),
        (["out", "--vote", "3"], "--votes"),
    ],
)
def test_what_was_asked_wrongly_is_said(tmp_path: Path, words: list[str], says_: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["judge", *words]) == 2
    assert says_ in capsys.readouterr().err


# LoCoMo's real questions

LOCOMO = Path(__file__).parents[2] / "shared" / "benchdata" / "locomo" / "locomo10.json"


@pytest.mark.skipif(not LOCOMO.is_file(), reason="locomo10.json is not there")
def test_known_answers_of_a_real_benchmark_are_sound() -> None:
    asked = [
        question(at, row["question"], str(row["answer"]), str(row["category"]), conversation["sample_id"])
        for conversation in json.loads(LOCOMO.read_text(encoding="utf-8"))
        for at, row in enumerate(conversation["qa"])
        if "answer" in row
    ]
    found = known_answers(asked, 40)
    for kind in KINDS:
        assert len([known for known in found if known.kind == kind]) >= 38
    wrong = [known for known in found if known.kind in (SPECIFIC, VAGUE)]
    assert not [known for known in wrong if f" {normalize_squad(known.question.golds[0])} " in f" {normalize_squad(known.case.answer)} "]


def _mean_of_all(text: str, golds: Sequence[str]) -> float:
    return sum(gold in text for gold in golds) / len(golds)


@pytest.mark.parametrize(("name", "together"), [("coverage@1", True), ("coverage_all@1", False)])
def test_a_rule_says_itself_that_it_wants_all_golds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, together: bool) -> None:
    rule = asks_for_all(lambda *asked: _mean_of_all(*asked)) if together else _mean_of_all
    monkeypatch.setitem(SCORER_REGISTRY._parts, name, rule)
    accepted = ("Lima, Puno",) if together else ("Lima", "Puno")
    assert needs_all(name) == together and not needs_all("nobody's@1")
    # An env's rule, over a data set that does not say it.
    folder = folder_of(tmp_path)
    write_json(tmp_path / "facts.json", [{"context": "c", "input": "Which?", "answers": ["Lima", "Puno"]}] * len(CITIES))
    write_json(folder / "fingerprint.json", {"data": {"sha256": file_hash(tmp_path / "facts.json")}})
    write_json(folder / "job.json", read_json(folder / "job.json") | {"env_options": {"reward": name}})
    assert evaluated(folder).every_question()[0].accepted == accepted
    # A task's: what it wrote down counts, whether the rule is known any more or not.
    monkeypatch.setattr(TASK_REGISTRY.get("hotpotqa"), "headline", name)
    write_json(tmp_path / "h.json", [{"_id": "h", "question": "Which?", "answer": "Lima", "context": [["A", ["Lima."]]]}])
    about = TaskEnv(str(tmp_path / "h.json"), None, task="hotpotqa").questions()
    row = about["examples"]["h"][0] | {"answers": ["Lima", "Puno"]}
    assert row["all_golds"] == together
    write_json(folder / "questions.json", about | {"examples": {f"facts/{at}": [row] for at in range(len(CITIES))}})
    monkeypatch.delitem(SCORER_REGISTRY._parts, name)
    assert evaluated(folder).every_question()[0].accepted == accepted
