"""Promise: the arena's table is what the ledgers say, a wrong answer is traced to where it was lost, and a mistake in the plan is said."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from memfactory.arena.diagnosis import LOST, Needed, needed, reason, truth
from memfactory.arena.page import page
from memfactory.arena.plan import ArenaConfig, Plan, read_plan
from memfactory.arena.report import commands, make_report, markdown
from memfactory.arena.scores import Cell, difference, line_of
from memfactory.arena.work import Place, jobs_of, make_data, train_config
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError
from memfactory.common.files import read_json, read_yaml, write_json
from memfactory.data.generators.dialog_world import memory_text
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.evaluation.jobs import Job
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger
from memfactory.evaluation.questions import Asked
from memfactory.evaluation.tasks.env import TaskEnv

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "examples" / "arena.yaml"


def plan(**given: Any) -> Plan:
    return read_plan(ArenaConfig(config=str(SHIPPED), **given))


# The plan


def test_every_shipped_plan_is_one_that_is_read() -> None:
    assert [len(read_yaml(path)["rows"]) for path in (SHIPPED, SHIPPED.with_name("arena_qwen3.yaml"))] == [7, 4]


def test_the_shipped_plan_has_three_paradigms_by_one_reader_with_one_budget() -> None:
    whole = plan()
    assert list(whole.seeds) == [0, 1, 2] and whole.compared == ["memagent", "memory_r1", "rmm"]
    assert {name for name, row in whole.rows.items() if row.roles != {"answer": "reference"}} == {"joint"}
    assert {row.agent_options.get("write_policy", "crud") for row in whole.rows.values()} == {"crud", "add_only", "temporal"}
    sessions = [options["sessions"] for options in whole.held_out.values()]
    assert sessions[1] == [2 * sessions[0][0]] and sessions[2] == [4 * sessions[0][0]] and max(whole.train_on["sessions"]) == sessions[0][0]
    place = Place(Path("x"))
    for row in whole.rows.values():
        config = TrainConfig(**train_config(whole, row, 1, place))
        assert (config.max_rollout_tokens, config.seed, config.max_steps) == (whole.budget, 1, None)


def test_options_replace_what_the_file_says() -> None:
    part = plan(agents=["rmm"], seeds=[4], budget=9, model="m", limit=3)
    assert (list(part.rows), list(part.seeds), part.budget, part.model, part.limit) == (["rmm"], [4], 9, "m", 3)
    assert part.anchors == {} and part.compared == ["rmm"], "anchors stand beside a row, and go with it"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"row": {}}, UnknownNameError, "row"),
        ({"rows": []}, ConfigError, "rows"),
        ({"rows": {"a": {"title": "A", "agnet": "x"}}}, UnknownNameError, "agnet"),
        ({"rows": {"a": {"title": "A"}}}, ConfigError, "agent"),
        ({"anchors": {"beside": "nobody", "kinds": []}}, UnknownNameError, "nobody"),
    ],
)
def test_a_mistake_in_the_file_is_said(tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str) -> None:
    file = tmp_path / "arena.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(SHIPPED.read_text()) | change), encoding="utf-8")
    with pytest.raises(error, match=says):
        read_plan(ArenaConfig(config=str(file)))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no.yaml"):
        read_plan(ArenaConfig(config=str(tmp_path / "no.yaml")))
    with pytest.raises(UnknownNameError, match="memory_r2.*memory_r1"):
        plan(agents=["memory_r2"])


def test_other_data_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    small = small_plan()
    make_data(small, Place(tmp_path))
    before = (tmp_path / "data" / "train.json").read_bytes()
    make_data(small, Place(tmp_path))
    assert (tmp_path / "data" / "train.json").read_bytes() == before and b'"gold"' not in before
    with pytest.raises(ConfigError, match="other options"):
        make_data(small_plan(people=5), Place(tmp_path))


def small_plan(**dialogues: Any) -> Plan:
    whole = plan(agents=["memory_r1", "memagent"], seeds=[0, 1])
    return Plan(
        **{**vars(whole), "dialogues": {**whole.dialogues, **dialogues}, "train_on": {"num_examples": 2, "sessions": [2]}, "budget": 100,
           "held_out": {"short": {"num_examples": 3, "seed": 5, "sessions": [2]}}}
    )  # fmt: skip


# Where an answer was lost

TOLD = ["city alice rome .", "boss alice bob .", "city bob oslo .", "city alice paris .", "pet bob cat .", "pet bob unknown ."]


def bank() -> Any:
    return truth([{"turns": [{"text": line, "speaker": "bob"}]} for line in TOLD])


def test_what_an_answer_needs_is_each_fact_on_the_way() -> None:
    assert needed(bank(), ("city", "alice")).facts == (("city", "alice", "paris"),)
    assert needed(bank(), ("city", "boss", "alice")).facts == (("boss", "alice", "bob"), ("city", "bob", "oslo"))
    assert needed(bank(), ("pet", "bob")).facts == ()


def test_a_fact_is_there_if_its_words_stand_in_one_statement() -> None:
    fact = Needed((("city", "alice", "paris"),))
    assert fact.within("pet bob cat . city alice paris .") and fact.within("0: city alice paris\n1: pet bob cat")
    assert not fact.within("city alice rome . city bob paris .")
    assert fact.within("Bob likes chess. My friend Alice now lives in Paris.") and not fact.within("Alice likes chess. Bob lives in Paris.")


@pytest.mark.parametrize("rendering", ["triples", "prose"])
def test_what_is_true_at_the_end_is_read_from_the_lines(rendering: str) -> None:
    for dialogue in synth_dialog(12, seed=3, sessions=(4,), rendering=rendering):
        known = sorted(memory_text(said, rendering) for said in truth(dialogue["sessions"]).values())
        assert known == sorted(text for _, text in dialogue["gold"]["turns"][-1]["bank"])


@pytest.mark.parametrize(
    ("memories", "shown", "lost"),
    [
        (["", "city alice rome ."], "city alice rome .", "never written"),
        (["city alice paris .", "city alice rome ."], "city alice rome .", "overwritten"),
        (["city alice paris . pet bob cat ."], "pet bob cat .", "not retrieved"),
        (["city alice paris ."], "city alice paris .", "not used"),
    ],
)
def test_a_wrong_answer_is_traced_to_where_it_was_lost(memories: list[str], shown: str, lost: str) -> None:
    assert lost in LOST and reason(Needed((("city", "alice", "paris"),)), memories, shown) == lost


# The table


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Place]:
    """An arena whose ledgers are written by hand: untrained rows answer nothing, trained ones everything, seed 1 but every other one."""
    small, place = small_plan(), Place(tmp_path_factory.mktemp("arena"))
    make_data(small, place)
    for job in jobs_of(small, place):
        hand_written(job)
    for row in small.rows:
        for seed in small.seeds:
            log = place.run(small.run_name(row, seed)) / "metrics.jsonl"
            log.parent.mkdir(parents=True)
            steps = [{"step": n, "rollout_tokens": 50, "cpu_seconds_total": 2.0 * n, "reward": 0.3 * n} for n in (1, 2)]
            log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return small, place


def hand_written(job: Job) -> None:
    folder = Path(job.folder)
    env = TaskEnv(job.data_path, None, task="synth_dialog")
    write_json(folder / "job.json", vars(job) | {"examples": [e["example_id"] for e in env.examples], "versions": {}})
    write_json(folder / "questions.json", env.questions())
    trained = job.model_name.endswith(("s0", "s1"))
    with Ledger(folder) as ledger:
        for example in env.examples:
            size = len(example["query"])
            scores = [float(trained and (job.model_name.endswith("s0") or at % 2 == 0)) for at in range(size)]
            cost = {"writing": {"memory": [1, 30, 12, 0.1]}, "answering": {"answer": [size, 60, 6, 0.1]}}
            told: dict[str, Any] = {"questions": scores, "marks": {"em_squad@1": scores}, "answers": ["x"] * size, "cost": cost}
            told |= {"memory": "city alice paris .", "steps": [["e", "nothing"]], "given": [[]] * size, "turns": 2}
            told |= {"prompt_tokens": 90, "completion_tokens": 18}
            for kind, count in ((GREEDY, 1), (SAMPLED, job.k)):
                ledger.append([Attempt(example["example_id"], kind, n, "ok", sum(scores) / size, **told) for n in range(count)])


def test_rows_are_means_over_their_seeds_and_anchors_stand_first(arena: tuple[Plan, Place]) -> None:
    report = make_report(*arena)
    lines = {line["line"]: line for line in report["lines"]}
    assert [line["state"] for line in report["lines"]] == ["anchor"] * 6 + ["untrained", "trained"] * 2
    trained = lines["memory_r1 trained"]["sets"]["short"]
    assert trained["greedy"]["n"] == trained["sampled"]["n"] == 18 and trained["greedy"]["mean"] == 0.75
    assert trained["seeds"] == {"memory_r1-s0": 1.0, "memory_r1-s1": 0.5}
    assert trained["written"] == pytest.approx(12 / 6) and trained["read"] == pytest.approx(90 / 6) and trained["memory"] == 4
    assert lines["memory_r1 untrained"]["sets"]["short"]["greedy"]["mean"] == 0 == lines["oracle"]["sets"]["short"]["greedy"]["mean"]
    gain = next(row for row in report["gains"] if (row["row"], row["kind"]) == ("memory_r1", "greedy"))
    assert (gain["diff"], gain["verdict"]) == (0.75, "better")
    assert [(row["diff"], row["verdict"]) for row in report["between"]] == [(0.0, "tied")]
    training = dict(report["training"]["memagent"])
    curve = training.pop("curve")
    assert training == {"cpu_seconds": 4.0, "steps": 2.0, "tokens": 100.0}
    assert curve[0] == pytest.approx(0.3) and curve[-1] == pytest.approx(0.6) and curve == sorted(curve)


def test_a_gain_of_which_too_much_was_lost_has_no_verdict() -> None:
    asked = [Asked("e", n, f"q{n}", "?", ["x"], "t", f"d{n}", False, "em_squad@1") for n in range(20)]
    before, whole, half = (Cell(asked, {"greedy": rows}) for rows in ([[0.0]] * 20, [[1.0]] * 19 + [[math.nan]], [[1.0], [math.nan]] * 10))
    found = [difference(before, after, "greedy", ("untrained", "trained")) for after in (whole, half)]
    assert [row["verdict"] for row in found] == ["better", "not compared: 50 % of trained's attempts lost"]
    assert [(row["diff"], row["scored"]) for row in found] == [(1.0, 0.95), (1.0, 0.5)] and found[1]["p"] is None


def test_losses_are_counted_of_the_greedy_attempts(arena: tuple[Plan, Place]) -> None:
    report = make_report(*arena)
    lines = {line["line"]: line for line in report["lines"]}
    lost = lines["memory_r1 untrained"]["sets"]["short"]["lost"]
    assert lost["asked"] == 18 == sum(lost.get(what, 0) for what in ("right", *LOST)) and set(lost) <= {
        "asked",
        "never written",
        "invented",
    }


def test_the_report_is_told_in_markdown_and_as_a_page(arena: tuple[Plan, Place]) -> None:
    report = make_report(*arena)
    text, document = markdown(report), page(report)
    for told in ("| Memory-R1, trained |", "+0.750", "never written", "memfactory train", "--anchors bm25", "no memory"):
        assert told in text, told
    assert document.startswith("<!doctype html>") and "Memory-R1, trained" in document and "src=" not in document
    assert json.loads(json.dumps(report)) == report


def test_the_command_under_a_line_is_one_that_the_evaluation_takes(arena: tuple[Plan, Place]) -> None:
    small, place = arena
    train, words = commands(small, place, "memory_r1 trained")
    assert train == f"memfactory train {place.run('memory_r1-s0')}.yaml --output_dir {place.root}/again/memory_r1-s0"
    assert f"memory_r1-s0={place.root}/again/memory_r1-s0/last" in words and '\'{"answer": "reference"}\'' in words
    names = [line_of(small, job) for job in jobs_of(small, place)]
    assert names.count("memagent trained") == 2 and names.count("bm25") == 1


@pytest.mark.slow
def test_a_small_arena_runs_resumes_and_is_not_made_again(tmp_path: Path) -> None:
    told = yaml.safe_load(SHIPPED.read_text()) | {"train_on": {"num_examples": 16, "sessions": [2]}, "k": 1}
    told["held_out"] = {"short": {"num_examples": 4, "seed": 5, "sessions": [2]}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    command = ["bash", str(ROOT / "examples" / "arena.sh"), "--config", str(tmp_path / "small.yaml"), "--agents", "memagent", "memory_r1"]
    command += ["--seeds", "0", "--budget", "500", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    out = tmp_path / "out"
    assert all((out / name).is_file() for name in ("report.json", "report.md", "report.html", "scores.png", "types.png", "learning.png"))
    report = read_json(out / "report.json")
    assert len(report["lines"]) == 6 + 4 and report["training"]["memory_r1"]["tokens"] >= 500
    made = {path: path.read_bytes() for path in out.glob("*/*/*/attempts.jsonl")}
    assert len(made) == 10
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0 and {path: path.read_bytes() for path in made} == made
    assert read_json(out / "report.json") == report


@pytest.mark.slow
def test_the_plan_for_larger_models_runs_end_to_end(tmp_path: Path) -> None:
    told = yaml.safe_load((SHIPPED.parent / "arena_qwen3.yaml").read_text())
    told |= {"train_on": {"num_examples": 4, "sessions": [1]}, "k": 0}
    told["held_out"] = {"short": {"num_examples": 2, "seed": 5, "sessions": [1]}}
    told["dialogues"] |= {"turns_per_session": 2, "questions": 2}
    told["anchors"]["kinds"] = ["oracle"]
    told["training"] |= {"batch_size": 4, "num_generations": 4, "device": "cpu"}
    told["rows"] = {name: row | {"training": {}} for name, row in told["rows"].items()}
    for row in told["rows"].values():
        row["agent_options"] |= {"max_generate_length": 24}  # the tiny model does not know where to stop in English
    told["rows"]["memory_r1"]["roles"] = {}  # nor JSON, so attempts differ, and teach, by their answers alone
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    command = ["bash", str(ROOT / "examples" / "arena.sh"), "--config", str(tmp_path / "small.yaml"), "--model", "models/tiny-arena"]
    command += ["--budget", "50", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    lines = {line["line"]: line["sets"]["short"] for line in read_json(tmp_path / "out" / "report.json")["lines"]}
    assert {"memagent trained", "memory_r1 trained", "rmm trained", "joint trained"} <= set(lines)
    assert all(part["lost"]["asked"] == 4 for line, part in lines.items() if line != "oracle")
