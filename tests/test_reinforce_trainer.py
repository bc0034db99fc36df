"""Promise: the reranker learns from citations what the retriever cannot know, a run resumes to the same bits, the world leaks nothing."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from memfactory.cli import defaults_of, main
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import ConfigError, DataError, InfrastructureError, UnknownNameError
from memfactory.common.files import read_json, read_jsonl, write_json, write_jsonl
from memfactory.common.registry import EMBEDDER_REGISTRY, TRAINER_REGISTRY
from memfactory.data.audit import audit
from memfactory.data.generators.synth_topics import TOPICS, synth_topics
from memfactory.data.rerank import GoldCiter, RerankExample, load_rerank
from memfactory.memory.embedders import HashedEmbedder, unit_rows
from memfactory.modules.rmm_reranker import FILE, RMMReranker
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.mem_reinforce_trainer import MemReinforceTrainer

DIM = 128
TIMES = ("seconds", "seconds_total")


class WordEmbedder:
    """Signed hashes of words: in a world of 256 words all that a test needs, and much quicker than n-grams."""

    name = "words"

    def embed(self, texts: Sequence[str]) -> Any:
        rows = np.zeros((len(texts), DIM))
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                place, sign = divmod(zlib.crc32(word.encode()), 2)
                row[place % DIM] += 2 * sign - 1
        return unit_rows(rows)


@pytest.fixture(autouse=True)
def words(forgotten_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedder `words`, and no pictures."""
    EMBEDDER_REGISTRY.register("words")(WordEmbedder)
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.json` of 400 questions and `dev.json` of 40 held-out ones, of two topics."""
    folder = tmp_path_factory.mktemp("topics")
    for name, split, number in (("train", "train", 400), ("dev", "held_out", 40)):
        write_json(folder / f"{name}.json", list(synth_topics(number, split=split, topics=2)))
    return folder


@pytest.fixture
def trainer(data: Path, tmp_path: Path) -> Callable[..., MemReinforceTrainer]:
    """`trainer(citer=None, reranker={}, trainer_options={}, **options)`, as a new process would make it."""

    def make(citer: Any = None, reranker: Any = None, trainer_options: Any = None, **options: Any) -> MemReinforceTrainer:
        nested = {"reranker": {"embedder": "words"} | (reranker or {})} | (trainer_options or {})
        settings = {
            "data_path": str(data / "train.json"), "output_dir": str(tmp_path / "run"), "device": "cpu", "max_steps": 4,
            "eval_data_path": [f"dev={data / 'dev.json'}"], "trainer_options": json.dumps(nested), "eval_steps": 0,
        }  # fmt: skip
        torch.manual_seed(options.get("max_steps", 0))  # nothing may depend on what the process did before
        return MemReinforceTrainer(MemReinforceTrainer.configured(settings | options), citer=citer)

    return make


def metrics_of(trainer: MemReinforceTrainer) -> list[dict[str, Any]]:
    rows = read_jsonl(trainer.output_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.endswith(TIMES) and not key.startswith("time/")} for row in rows]


# What it learns


@pytest.mark.slow
def test_it_learns_from_citations_what_the_retriever_does_not_know(trainer: Callable[..., MemReinforceTrainer]) -> None:
    run = trainer(max_steps=100, lr=5e-3, eval_steps=50)
    examples = run.eval_sets["dev"]
    before = run.check(examples)
    assert before.reranker == before.retriever < 0.35 and (before.gain.diff, before.gain.ci_low, before.gain.ci_high) == (0, 0, 0)
    run.train()
    after = run.check(examples)
    assert after.retriever == before.retriever and after.reranker > 0.6 and after.gain.ci_low > 0.25
    rows = metrics_of(run)
    assert rows[-1]["eval/dev/usefulness"] == rows[-1]["eval/score"] == after.reranker
    assert (rows[-1]["gain/dev"], rows[-1]["gain/dev/low"]) == (after.gain.diff, after.gain.ci_low) and after.gain.n == 40
    assert rows[-1]["entropy"] < rows[0]["entropy"] and rows[-1]["usefulness_so_far"] > 0.4
    assert (run.output_dir / "best").is_dir()


@pytest.mark.slow
def test_a_citer_that_always_lies_teaches_the_opposite(trainer: Callable[..., MemReinforceTrainer]) -> None:
    run = trainer(max_steps=40, lr=5e-3, trainer_options={"citer_noise": 1.0, "baseline": "leave_one_out"})
    run.train()
    assert run.check(run.eval_sets["dev"]).gain.ci_high < 0, "held-out checks have no noise"


@pytest.mark.parametrize("options", [{"mode": "paper_literal"}, {"mode": "independent_softmax"}, {"baseline": "ema"}, {"shown": 20}])
def test_every_mode_and_baseline_makes_finite_updates(trainer: Callable[..., MemReinforceTrainer], options: dict[str, Any]) -> None:
    run = trainer(trainer_options=options)
    run.train()
    assert run.updates == 4 and run.skipped_updates == 0
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in metrics_of(run))


def test_tau_is_how_random_the_draw_is(trainer: Callable[..., MemReinforceTrainer], tmp_path: Path) -> None:
    runs = [trainer(reranker={"tau": tau}, max_steps=1, eval_data_path=[], output_dir=str(tmp_path / str(tau))) for tau in (0.02, 0.5, 9.0)]
    for run in runs:
        run.train()
    entropies = [metrics_of(run)[0]["entropy"] for run in runs]
    assert entropies[0] < 1.7 < 2.8 < entropies[1] < entropies[2] < sum(math.log(n) for n in range(16, 21)) / 5


def test_the_running_baseline_is_the_mean_of_the_rewards_before(trainer: Callable[..., MemReinforceTrainer]) -> None:
    run = trainer(trainer_options={"baseline": "ema", "ema_decay": 0.5, "b": 0.25})
    run.train()
    rewards = [row["reward"] for row in metrics_of(run)]
    expected = [0.25, rewards[0], (rewards[0] + rewards[1]) / 2]
    assert [row["baseline"] for row in metrics_of(run)[:3]] == pytest.approx(expected)


# Who cites


class Spy:
    """A citer that cites the first memory it shows, and cannot say for every second question."""

    def __init__(self, unknown: int = 2) -> None:
        self.unknown = unknown
        self.asked: list[tuple[RerankExample, list[int]]] = []

    def cite(self, examples: Sequence[RerankExample], shown: Sequence[Sequence[int]]) -> list[Collection[int] | None]:
        self.asked += [(example, list(places)) for example, places in zip(examples, shown, strict=True)]
        return [None if self.unknown and at % self.unknown == 0 else {0, 99} for at in range(len(examples))]


def test_citers_see_what_is_shown_and_what_they_cannot_say_is_left_out(trainer: Callable[..., MemReinforceTrainer]) -> None:
    spy = Spy()
    run = trainer(citer=spy, max_steps=1, eval_data_path=[])
    run.train()
    (row,) = metrics_of(run)
    assert len(spy.asked) == 4 and all(len(set(places)) == len(places) == 5 for _, places in spy.asked)
    assert row["scored"] == row["unscorable"] == 10 and row["usefulness"] == pytest.approx(0.2) and row["reward"] == pytest.approx(-0.6)


def test_a_batch_of_which_nothing_is_known_changes_nothing(trainer: Callable[..., MemReinforceTrainer]) -> None:
    run = trainer(citer=Spy(unknown=1), max_steps=2, eval_data_path=[])
    with pytest.raises(InfrastructureError, match="Ended at step 2 without a score for any attempt. Lost to: 40 x Nobody said"):
        run.train()
    assert run.updates == 0 and all(not parameter.any() for parameter in run.model.parameters())
    assert [(row["scored"], row["unscorable"]) for row in metrics_of(run)] == [(0, 20)] * 2


def test_the_gold_citer_names_places_among_the_shown_and_errs_as_often_as_asked() -> None:
    example = RerankExample("a/0", "?", tuple("abcdef"), frozenset({1, 4}))
    assert GoldCiter().cite([example], [[4, 0, 1]]) == [[0, 2]]
    noisy = GoldCiter(0.3, seed=1)
    examples = [RerankExample(f"a/{n}", "?", tuple("abcdef"), frozenset({1, 4})) for n in range(300)]
    found = noisy.cite(examples, [[0, 1, 2, 3, 4]] * 300)
    assert found == noisy.cite(examples, [[0, 1, 2, 3, 4]] * 300)
    wrong = sum((at in cited) != (at in (1, 4)) for cited in found if cited is not None for at in range(5))
    assert stats.binomtest(wrong, 1500, 0.3).pvalue > 1e-3
    with pytest.raises(DataError, match="a/0 has no `outputs`"):
        GoldCiter().cite([RerankExample("a/0", "?", ("a",), None)], [[0]])


def test_questions_with_fewer_memories_than_are_shown_are_trained_on(trainer: Callable[..., MemReinforceTrainer], tmp_path: Path) -> None:
    rows = list(synth_topics(4, memories=3, useful=1)) + list(synth_topics(4, memories=30, useful=9))
    write_json(tmp_path / "ragged.json", rows)
    run = trainer(data_path=str(tmp_path / "ragged.json"), batch_size=8, max_steps=2)
    run.train()
    assert run.updates == 2 and metrics_of(run)[0]["scored"] == 4 * 3 + 4 * 5


# Resume, checkpoints, the command


@pytest.mark.parametrize("rank", [None, 4])
def test_six_steps_equal_three_and_a_resumed_three(trainer: Callable[..., MemReinforceTrainer], tmp_path: Path, rank: int | None) -> None:
    options: dict[str, Any] = {"reranker": {"rank": rank}, "trainer_options": {"baseline": "ema"}, "save_steps": 3, "eval_steps": 2}
    whole = trainer(output_dir=str(tmp_path / "whole"), max_steps=6, **options)
    whole.train()
    trainer(max_steps=3, **options).train()
    resumed = trainer(max_steps=6, resume=True, **options)
    last = resumed.train()
    assert last.name == "checkpoint-000006" and metrics_of(resumed) == metrics_of(whole)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert resumed.mean_reward == whole.mean_reward
    states = [ckpt.load_state(run.output_dir / "last")["optimizers"][0]["state"] for run in (whole, resumed)]
    assert all(torch.equal(states[0][at][name], states[1][at][name]) for at in states[0] for name in ("exp_avg", "exp_avg_sq", "step"))


def test_a_checkpoint_is_a_retriever_and_says_how_it_was_made(trainer: Callable[..., MemReinforceTrainer]) -> None:
    run = trainer(trainer_options={"shown": 4})
    folder = run.train()
    assert {path.name for path in folder.iterdir()} == {FILE, "memfactory.json", "trainer_state"}
    about = read_json(folder / "memfactory.json")
    assert (about["trainer"], about["module"], about["step"]) == ("mem_reinforce", "rmm_reranker", 4)
    assert about["module_options"]["embedder"] == "words" and about["config"]["trainer_options"]["shown"] == 4
    module = RMMReranker(None, embedder="words", weights=str(folder))
    assert all(torch.equal(a, b) for a, b in zip(module.scores.parameters(), run.model.parameters(), strict=True))
    more = trainer(reranker={"weights": str(folder)}, trainer_options={"shown": 4}, output_dir=str(folder.parent.parent / "more"))
    assert more.check(more.eval_sets["dev"]) == run.check(run.eval_sets["dev"]), "training can begin from weights"


def test_other_options_are_refused_on_resume(trainer: Callable[..., MemReinforceTrainer]) -> None:
    trainer(max_steps=1).train()
    with pytest.raises(ConfigError, match=r"trainer_options: .*'shown': 3"):
        trainer(max_steps=2, resume=True, trainer_options={"shown": 3}).train()


def test_the_command_trains_with_the_papers_numbers(data: Path, tmp_path: Path) -> None:
    arguments = ["--trainer", "mem_reinforce", "--data_path", str(data / "train.json"), "--output_dir", str(tmp_path / "run")]
    options = ["--trainer_options", '{"reranker": {"embedder": "words"}}', "--max_steps", "2", "--eval_steps", "1", "--device", "cpu"]
    assert main(["train", *arguments, *options, "--eval_data_path", str(data / "dev.json"), "--seed", "3"]) == 0
    config = read_json(tmp_path / "run" / "last" / "memfactory.json")["config"]
    assert (config["lr"], config["batch_size"], config["max_grad_norm"], config["seed"]) == (1e-3, 4, 1.0, 3)
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_what_is_given_wins_over_the_trainers_defaults_and_other_trainers_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("trainer: mem_reinforce\nbatch_size: 7\n")
    config = read_config([str(tmp_path / "run.yaml"), "--save_steps", "9"], None, defaults_of)
    assert (config.lr, config.batch_size, config.save_steps, config.warmup_updates) == (1e-3, 7, 9, 0)
    assert read_config(["--lr", "1e-5"], None, defaults_of) == TrainConfig(lr=1e-5)
    assert MemReinforceTrainer.configured({"lr": 0.5}) == read_config(["--trainer", "mem_reinforce", "--lr", "0.5"], None, defaults_of)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data_path": None}, "--data_path is required.*data build synth_topics"),
        ({"gradient_checkpointing": True}, "no layers to recompute"),
        ({"trainer_options": {"shown": 21}}, "shown=21 is more than the 20 candidates"),
        ({"trainer_options": {"shown": 0}}, "shown 0: must be at least 1"),
        ({"trainer_options": {"mode": "plackett"}}, "mode 'plackett'. Did you mean 'plackett_luce'"),
        ({"trainer_options": {"baseline": "mean"}}, "Known: ema, fixed, leave_one_out"),
        ({"trainer_options": {"tau": 1}}, "option of the trainer mem_reinforce 'tau'"),
        ({"trainer_options": {"citer_noise": 2}}, "citer_noise 2: must be at least 0 and at most 1"),
    ],
)
def test_impossible_requests_are_refused(trainer: Callable[..., MemReinforceTrainer], options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        trainer(**options)


def test_training_on_the_held_out_set_is_refused(trainer: Callable[..., MemReinforceTrainer], data: Path) -> None:
    with pytest.raises(ConfigError, match="is the held-out set"):
        trainer(data_path=str(data / "dev.json"))


def test_another_trainer_has_no_such_options(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "turns.jsonl", [{"messages": [{"role": "user", "content": "?"}], "response": "!"}])
    config = TrainConfig(trainer="mem_sft", data_path=str(tmp_path / "turns.jsonl"), trainer_options='{"shown": 3}')
    with pytest.raises(UnknownNameError, match="option of the trainer mem_sft 'shown'"):
        TRAINER_REGISTRY.get("mem_sft")(config)


# The file


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a text", "record 1: expected an object"),
        ({"M": ["a"], "outputs": []}, "record 1: `input` must be a question"),
        ({"input": "?", "M": "a"}, "record 1: `M` must be a list of texts"),
        ({"input": "?", "M": []}, "record 1: `M` must hold memories"),
        ({"input": "?", "M": ["a", "a"]}, "it has 2, 1 of them different"),
        ({"input": "?", "M": ["a"], "outputs": ["b"]}, "`outputs` names 'b', which is none of the memories"),
        ({"input": "?", "M": ["a"], "outputs": [1]}, "`outputs` must be a list of texts"),
    ],
)
def test_a_wrong_record_is_named(row: Any, said: str, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [{"input": "?", "M": ["a", "b"], "outputs": ["b"]}, row])
    with pytest.raises(DataError, match=said):
        load_rerank(tmp_path / "x.json")


def test_records_are_read_from_json_and_json_lines(tmp_path: Path) -> None:
    rows = [{"input": "?", "M": ["a", "b"], "outputs": ["b"]}, {"input": "!", "M": ["c"]}]
    write_json(tmp_path / "x.json", rows)
    write_jsonl(tmp_path / "x.jsonl", rows)
    expected = [RerankExample("x/0", "?", ("a", "b"), frozenset({1})), RerankExample("x/1", "!", ("c",), None)]
    assert load_rerank(tmp_path / "x.json") == load_rerank(tmp_path / "x.jsonl") == expected


# The world


def telling(text: str) -> frozenset[str]:
    """The telling words of a memory."""
    return frozenset(re.findall(r"\w+", text.lower())) & {word for _, half in TOPICS for word in half}


def test_the_words_of_the_world_are_all_different() -> None:
    words = [word for halves in TOPICS for half in halves for word in half]
    assert len(words) == len(set(words)) == 16 * 16


def test_records_depend_on_seed_and_number_alone_and_what_is_useful_is_what_has_the_questions_topic() -> None:
    rows = list(synth_topics(6, seed=2))
    assert rows == list(synth_topics(9, seed=2))[:6] != list(synth_topics(6, seed=3))
    for at, row in enumerate(rows):
        assert set(row) == {"input", "M", "outputs", "index"} and row["index"] == at
        assert len(set(row["M"])) == 20 and len(row["outputs"]) == 5 and set(row["outputs"]) < set(row["M"])
        topics = [next(at for at, (_, half) in enumerate(TOPICS) if telling(text) <= set(half)) for text in row["M"]]
        gold = {topic for topic, text in zip(topics, row["M"], strict=True) if text in row["outputs"]}
        assert len(gold) == 1 and [topic in gold for topic in topics] == [text in row["outputs"] for text in row["M"]]
        assert len({*re.findall(r"\w+", row["input"].lower())} & {*TOPICS[gold.pop()][0]}) == 2
    assert audit("synth_topics", list(synth_topics(100))).problems() == []


def test_held_out_questions_and_memories_are_other_combinations_of_words() -> None:
    seen, new = ({telling(text) for row in synth_topics(150, split=split) for text in row["M"]} for split in ("train", "held_out"))
    assert len(new) > 200 and not seen & new
    assert set().union(*new) <= set().union(*seen), "but of the same words"


def test_gold_is_anywhere_and_a_memory_alone_says_nothing() -> None:
    rows = list(synth_topics(400))
    places = [row["M"].index(text) for row in rows for text in row["outputs"]]
    assert stats.chisquare(np.bincount(places, minlength=20)).pvalue > 1e-3
    vectors = WordEmbedder().embed([text for row in rows for text in row["M"]]).reshape(400, 20, -1)
    useful = np.array([[text in row["outputs"] for text in row["M"]] for row in rows])
    targets = (useful - 0.25).reshape(-1)[: 200 * 20]
    flat = vectors[:200].reshape(-1, DIM)
    weights = np.linalg.solve(flat.T @ flat + 0.1 * np.eye(DIM), flat.T @ targets)
    assert abs(top_five(vectors[200:] @ weights, useful[200:]) - 0.25) < 0.06


def top_five(scores: np.ndarray, useful: np.ndarray) -> float:
    return float(np.take_along_axis(useful, np.argsort(-scores, axis=1, kind="stable")[:, :5], axis=1).mean())


@pytest.mark.slow
def test_the_retriever_is_misled_and_its_opposite_is_little_better() -> None:
    rows, embedder = list(synth_topics(100, split="held_out")), HashedEmbedder()
    memories = embedder.embed([text for row in rows for text in row["M"]]).reshape(100, 20, -1)
    cosines = np.einsum("bkd,bd->bk", memories, embedder.embed([row["input"] for row in rows]))
    useful = np.array([[text in row["outputs"] for text in row["M"]] for row in rows])
    assert 0.14 < top_five(cosines, useful) < 0.26 and 0.25 < top_five(-cosines, useful) < 0.37


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "dev"}, "split 'dev'.*Known: held_out, train"),
        ({"topics": 1}, "topics=1"),
        ({"useful": 20}, "useful=20 of memories=20"),
        ({"lure": 1.5}, "lure=1.5 are probabilities"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        synth_topics(1, **options)


@pytest.mark.slow
def test_a_linear_map_fitted_to_the_gold_is_right_on_held_out_questions() -> None:
    embedder = HashedEmbedder(dim=512)

    def tensors(split: str, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = list(synth_topics(number, split=split))
        memories = embedder.embed([text for row in rows for text in row["M"]]).reshape(number, 20, -1)
        useful = torch.tensor([[text in row["outputs"] for text in row["M"]] for row in rows])
        return torch.from_numpy(embedder.embed([row["input"] for row in rows])), torch.from_numpy(memories), useful.float()

    queries, memories, useful = tensors("train", 2000)
    matrix = torch.zeros(512, 512, requires_grad=True)
    optimizer = torch.optim.Adam([matrix], lr=3e-3)
    for at in range(0, 2 * 2000, 16):
        part = [n % 2000 for n in range(at, at + 16)]
        logits = 10 * torch.einsum("bd,bkd->bk", queries[part] @ matrix, memories[part])
        optimizer.zero_grad()
        (-(logits.log_softmax(-1) * useful[part]).sum(-1).mean()).backward()
        optimizer.step()
    queries, memories, useful = tensors("held_out", 200)
    assert top_five(torch.einsum("bd,bkd->bk", queries @ matrix, memories).detach().numpy(), useful.numpy()) > 0.8


@pytest.mark.slow
def test_usefulness_rises_from_a_fifth_to_over_a_half_in_a_thousand_updates(tmp_path: Path) -> None:
    """Seed 0; benchmarks/reranker.py has more."""
    write_json(tmp_path / "train.json", list(synth_topics(4000)))
    write_json(tmp_path / "dev.json", list(synth_topics(200, split="held_out")))
    config = MemReinforceTrainer.configured({
        "data_path": str(tmp_path / "train.json"), "eval_data_path": [str(tmp_path / "dev.json")], "output_dir": str(tmp_path / "run"),
        "device": "cpu", "save_steps": 2000, "eval_steps": 0,
    })  # fmt: skip
    run = MemReinforceTrainer(config)
    run.train()
    check = run.check(run.eval_sets["dev"])
    assert run.updates == 1000
    assert 0.15 < check.retriever < 0.25 and check.reranker > 0.5 and check.gain.ci_low > 0.25
