"""A step is the same step on any number of processes: dealt out, weighted, summed and measured as in one."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.algorithms.credit import assign_credit
from memfactory.algorithms.packing import AGGREGATIONS, Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, InfrastructureError, UnknownNameError
from memfactory.common.files import read_jsonl, write_json
from memfactory.common.types import RolloutGroup, Trajectory, Turn
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.trainers.distributed import Ranks, SharedBatch, dealt, device_of, explained, renumbered
from memfactory.trainers.mem_sft_trainer import MemSFTTrainer
from memfactory.trainers.metrics import Averages, Sampled, rollout_metrics, together
from memfactory.trainers.sharding import sharded, spread

ROOT = Path(__file__).parents[1]
SCENARIOS = "one one_every ddp ddp_every fsdp2 fsdp2_every idle_one idle idle_fsdp2 resumed resumed_fsdp2 dying".split()


class Together(Ranks):
    """A rank in a test of one thread: what the others would send is known beforehand."""

    def __init__(self, rank: int, everyone: list[Any]) -> None:
        super().__init__(rank, len(everyone))
        object.__setattr__(self, "everyone", everyone)

    def gather(self, value: Any) -> list[Any]:
        return self.everyone  # type: ignore[attr-defined]


# Dealing out


@settings(max_examples=60, deadline=None)
@example([(0, 1), (0, 1), (1, 1), (1, 1), (2, 3), (3, 3)], 3)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 1000)), min_size=4, max_size=24), st.integers(1, 4))
def test_whole_groups_are_dealt_once_and_evenly(examples: list[tuple[int, int]], ranks: int) -> None:
    names, sizes = [f"e{name}" for name, _ in examples], [size for _, size in examples]
    if len(set(names)) < ranks:
        with pytest.raises(ConfigError, match="--batch_size"):
            dealt(names, sizes, ranks)
        return
    shares = dealt(names, sizes, ranks)
    assert sorted(at for share in shares for at in share) == list(range(len(names)))
    assert all(share == sorted(share) for share in shares)
    owners = {name: {rank for rank, share in enumerate(shares) for at in share if names[at] == name} for name in names}
    assert all(len(ranks_of) == 1 for ranks_of in owners.values())
    most = max(Counter(names).values())
    assert max(map(len, shares)) <= -(-len(names) // ranks) + most - 1


def test_long_and_short_examples_are_balanced() -> None:
    shares = dealt(list("abcdef"), [100, 90, 10, 10, 5, 5], 2)
    assert sorted(sum([100, 90, 10, 10, 5, 5][at] for at in share) for share in shares) == [105, 115]
    assert [len(share) for share in shares] == [3, 3]


# One denominator


def samples(rng: random.Random, groups: int, attempts: int) -> list[Sample]:
    """Turns of every attempt at every group, of any length; some attempts have none."""
    made = []
    for trajectory in range(groups * attempts):
        for _ in range(rng.randrange(3)):
            length = rng.randrange(1, 6)
            made.append(Sample((1,) * rng.randrange(1, 5), (2,) * length, (0.0,) * length, 1.0, trajectory, trajectory // attempts))
    return made


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_minibatches_and_weights_are_those_of_one_process(aggregation: str, seed: int) -> None:
    rng, attempts = random.Random(seed), 4
    whole = TrainBatch(samples(rng, 5, attempts), aggregation, 8)
    places = dealt([f"e{n}" for n in range(5)], [rng.random() for _ in range(5)], 3)
    local = []
    for share in places:  # as each process numbers them: from 0
        own = [s for s in whole.samples if s.group in share]
        numbered = [
            replace(s, group=share.index(s.group), trajectory=share.index(s.group) * attempts + s.trajectory % attempts) for s in own
        ]
        local.append(renumbered(replace(whole, samples=numbered), share, attempts))
        assert local[-1].samples == own
    outlines = [SharedBatch(each, Ranks()).data.samples for each in local]
    expected = list(whole.minibatches(3, random.Random(seed)))
    seen = []
    for rank, each in enumerate(local):
        everyone = [[replace(s, prompt_ids=(), old_logprobs=()) for s in others] for others in outlines]
        seen.append(list(SharedBatch(each, Together(rank, everyone)).minibatches(3, random.Random(seed))))
    assert {len(parts) for parts in seen} == {len(expected)}, "every rank makes every update"
    for at, part in enumerate(expected):
        weights = {(s.trajectory, s.response_ids, s.prompt_ids): w for s, w in zip(part.samples, part.token_weights(), strict=True)}
        found = [pair for parts in seen for pair in zip(parts[at].samples, parts[at].token_weights(), strict=True)]
        assert sorted(map(repr, (s for s, _ in found))) == sorted(map(repr, part.samples))
        assert all(weights[s.trajectory, s.response_ids, s.prompt_ids] == weight for s, weight in found)


def test_a_step_without_anything_to_train_has_no_update() -> None:
    assert list(SharedBatch(TrainBatch([]), Together(0, [[], []])).minibatches(2, random.Random(0))) == []
    assert list(SharedBatch(TrainBatch([]), Ranks()).minibatches(2, random.Random(0))) == []


# Metrics


def test_metrics_and_credit_of_all_processes_are_those_of_one() -> None:
    def group(name: str, lengths: list[int]) -> RolloutGroup:
        turns = [[Turn("memory", (1,) * n, (2,) * n, (0.0,) * n, "text", "stop", True)] * (1 + n % 2) for n in lengths]
        return RolloutGroup([Trajectory(t, report=Counter({"cut": 1})) for t in turns], name)

    groups = [group("a", [1, 2]), group("b", [3, 4]), group("c", [5, 6])]
    rewards = {"default": torch.tensor([0.0, 1.0, 0.5, 0.5, math.nan, 1.0]), "default/part": torch.arange(6.0)}
    asked = {"question": torch.tensor([[0.0, math.nan], [1, math.nan], [1, 0], [0, 1], [1, 1], [0, 0]])}
    whole = Sampled(groups, rewards | asked, 2.0)
    cut = [slice(0, 2), slice(2, 6)]
    parts = [Sampled(groups[:1], {k: v[cut[0]] for k, v in rewards.items()} | {"question": asked["question"][:2, :1]}, 1.0)]
    parts.append(Sampled(groups[1:], {k: v[cut[1]] for k, v in (rewards | asked).items()}, 2.0))
    joined = together([part.outline() for part in parts])
    credit = [assign_credit(each.groups, each.rewards) for each in (whole, joined)]
    assert credit[0] == credit[1] and credit[0].unscorable == 1
    first, second = (rollout_metrics(s.groups, s.rewards, c, s.seconds) for s, c in zip((whole, joined), credit, strict=True))
    assert first == second and first["rollout_tokens"] == sum(n * (1 + n % 2) for n in range(1, 7))


def test_averages_join_by_count_and_maxima_by_size() -> None:
    left, right = Averages(), Averages()
    left.add("kl", 3.0, 1)
    right.add("kl", 1.0, 3)
    right.add("entropy", 2.0, 1)
    left.maximum("ratio_max", 1.5)
    right.maximum("ratio_max", 1.2)
    assert Averages.of_all([left, right]).means() == {"kl": 1.0, "entropy": 2.0, "ratio_max": 1.5}


# What cannot work is said


def test_ranks_that_see_different_things_are_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"differ in the data \(rank 0: one; rank 1: two\)"):
        Together(0, ["one", "two"]).same("the data", "one")
    Ranks().same("anything", 1)


def test_a_lost_connection_is_explained_and_other_errors_are_not() -> None:
    alone, two = Ranks(), Ranks(1, 2)
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:12689")
    assert isinstance(explained(lost, two), InfrastructureError) and "Rank 1 of 2 lost the others" in str(explained(lost, two))
    assert explained(lost, alone) is None and explained(RuntimeError("shape mismatch"), two) is None


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == torch.device("cuda") and device_of("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("auto") == torch.device("cuda:1") and device_of("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="takes a GPU of its own"):
        device_of("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="has 2"):
        device_of("auto")


def test_how_the_model_is_held_follows_the_option_and_accelerates_file(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, two = Ranks(), Ranks(0, 2)
    with pytest.raises(UnknownNameError, match="fsdp2"):
        sharded("fsdp", alone)
    assert not sharded("fsdp2", alone), "alone there is nothing to share"
    assert sharded("fsdp2", two) and not sharded("ddp", two) and not sharded("auto", two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharded("auto", two) and not sharded("ddp", two) and not sharded("auto", alone)
    model: Any = torch.nn.Linear(2, 2)
    for config, plain in ((TrainConfig(optimizer="muon"), True), (TrainConfig(), False)):
        with pytest.raises(ConfigError, match="--parallel ddp, which takes them all"):
            spread(model, two, config, plain)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        sharded("auto", two)


def test_trainers_of_one_process_refuse_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "turns.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "response": "b"}\n')
    monkeypatch.setattr(Ranks, "start", lambda device: Ranks(0, 2))
    with pytest.raises(ConfigError, match="trains in one process, and 2 were started"):
        MemSFTTrainer(TrainConfig(data_path=str(tmp_path / "turns.jsonl"), device="cpu", output_dir=str(tmp_path / "run")))


# Two processes against one


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> SimpleNamespace:
    """The folder in which every scenario of `ranks.py` was run, and what the processes printed."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_qwen3(seed=3, initializer_range=0.12).save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    write_json(folder / "facts.json", synth_facts(5, seed=3, chunks=(2,)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "ranks.py"), str(folder), *SCENARIOS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, printed=done.stderr)


def result(runs: SimpleNamespace, scenario: str) -> list[Any]:
    found = torch.load(runs.folder / f"{scenario}.pt", weights_only=False)
    assert not any(isinstance(each, float) for each in found), f"{scenario}: {runs.printed[-3000:]}"
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "several"),
    [
        ("one", "ddp"),
        ("one", "fsdp2"),
        ("one_every", "ddp_every"),
        ("one_every", "fsdp2_every"),
        ("idle_one", "idle"),
        ("idle_one", "idle_fsdp2"),
    ],
)
def test_two_processes_train_the_weights_of_one(runs: SimpleNamespace, alone: str, several: str) -> None:
    expected, *_ = result(runs, alone)
    start = Qwen3ForCausalLM.from_pretrained(runs.folder / "base").state_dict()
    moved = largest_difference(expected, start)
    passes = []
    for weights, made in result(runs, several):
        passes.append(made)
        assert largest_difference(weights, expected) < 1e-5 < moved / 50
    if several == "ddp":
        assert sum(passes[0]) != sum(passes[1]), "the processes should differ in their micro-batches, or this shows less"
    if several == "idle":
        assert 0 in (sum(made[1:]) for made in passes), "one of the two has nothing to train on; its first pass is the probe's"


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp2"])
def test_metrics_and_checks_are_those_of_one_process(runs: SimpleNamespace, several: str) -> None:
    alone, together = (read_jsonl(runs.folder / name / "metrics.jsonl") for name in ("one_0", several))
    assert [row["step"] for row in together] == [1, 2, 3]
    for one, other in zip(alone, together, strict=True):
        assert one.keys() - {"time/exchange"} <= other.keys()
        for key, value in one.items():
            if isinstance(value, list):
                assert sorted(value) == pytest.approx(sorted(other[key]))
            elif not key.endswith(("seconds", "per_second", "seconds_total", "memory_gb", "mfu")) and not key.startswith(
                ("time/", "logprob_mis")
            ):
                assert value == pytest.approx(other[key], abs=1e-4, rel=1e-4), key
    assert {"eval/facts/greedy", "eval/facts/sampled"} <= together[-1].keys()


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp2"])
def test_a_resumed_run_goes_on_where_it_was(runs: SimpleNamespace, several: str) -> None:
    whole = result(runs, several)[0][0]
    for weights in result(runs, {"ddp": "resumed", "fsdp2": "resumed_fsdp2"}[several]):
        assert largest_difference(weights, whole) < 1e-6
    folder = runs.folder / {"ddp": "resumed", "fsdp2": "resumed_fsdp2"}[several]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-000002", "checkpoint-000003"]
    saved = Qwen3ForCausalLM.from_pretrained(folder / "last").state_dict()
    assert largest_difference(saved, whole) < 1e-6, "the checkpoint holds whole tensors"


@pytest.mark.slow
def test_a_dying_process_ends_the_others_with_words(runs: SimpleNamespace) -> None:
    said, _ = torch.load(runs.folder / "dying.pt", weights_only=False)
    assert said.startswith("Rank 0 of 2 lost the others") and "--resume True" in said
