"""Promise: every paid token is trained once, at its own place, with a weight that does not depend on how it was batched."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction

import pytest
import torch
from helpers_algorithms import make_group, make_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.algorithms.credit import Credit
from memfactory.algorithms.packing import AGGREGATIONS, Sample, TrainBatch, pack
from memfactory.common.errors import ConfigError

MEANS = [name for name in AGGREGATIONS if name != "constant"]


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    """Samples with unlike lengths; trajectories in any order, each in one group; ids name the sample."""
    samples = []
    for at in range(draw(st.integers(1, 12))):
        prompt, response = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        trajectory = draw(st.integers(0, 5))
        old = tuple(-float(n + 1) for n in range(response))
        samples.append(
            Sample((at + 1,) * prompt, tuple(100 * (at + 1) + n for n in range(response)), old, at + 0.5, trajectory, trajectory // 2)
        )
    return samples


def units_of(samples: list[Sample], aggregation: str) -> dict[object, list[int]]:
    """What weighs alike under an aggregation: {unit: its samples}."""
    units: defaultdict[object, list[int]] = defaultdict(list)
    for at, sample in enumerate(samples):
        units[{"token": 0, "sequence": at, "trajectory": sample.trajectory, "prompt": sample.group}[aggregation]].append(at)
    return units


@given(samples=sample_lists(), budget=st.integers(1, 80))
@settings(max_examples=80, deadline=None)
def test_micro_batches_hold_each_sample_once_within_the_budget(samples: list[Sample], budget: int) -> None:
    micros = list(TrainBatch(samples).micro_batches(budget))
    seen = [sample for micro in micros for sample in micro.samples]
    assert sorted(map(id, seen)) == sorted(map(id, samples))
    assert all(micro.ids.numel() <= budget or len(micro.ids) == 1 for micro in micros)


@given(samples=sample_lists(), budget=st.integers(1, 80))
@settings(max_examples=80, deadline=None)
def test_trained_positions_are_the_response_tokens_each_predicted_from_the_one_before(samples: list[Sample], budget: int) -> None:
    for micro in TrainBatch(samples).micro_batches(budget):
        for row, sample in enumerate(micro.samples):
            here = micro.rows == row
            first = len(sample.prompt_ids) - 1
            assert micro.cols[here].tolist() == list(range(first, first + len(sample.response_ids)))
            assert tuple(micro.targets[here].tolist()) == sample.response_ids == tuple(micro.ids[row, micro.cols[here] + 1].tolist())
            assert micro.ids[row].tolist()[: len(sample)] == [*sample.prompt_ids, *sample.response_ids]
            assert not micro.ids[row, len(sample) :].any()


@given(samples=sample_lists(), budget=st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_each_token_carries_its_own_samples_numbers(samples: list[Sample], budget: int) -> None:
    for micro in TrainBatch(samples).micro_batches(budget):
        for row, sample in enumerate(micro.samples):
            here = micro.rows == row
            assert tuple(micro.old[here].tolist()) == sample.old_logprobs
            assert set(micro.advantages[here].tolist()) == {sample.advantage}
        assert len(micro.rows) == len(micro.cols) == sum(len(s.response_ids) for s in micro.samples)


@pytest.mark.parametrize("aggregation", MEANS)
@given(samples=sample_lists())
@settings(max_examples=40, deadline=None)
def test_weights_are_a_mean_over_units_of_means_over_their_tokens(aggregation: str, samples: list[Sample]) -> None:
    units = units_of(samples, aggregation)
    expected: list[Fraction] = [Fraction(0)] * len(samples)
    for members in units.values():
        for at in members:
            expected[at] = Fraction(1, len(units)) * Fraction(1, sum(len(samples[n].response_ids) for n in members))
    found = TrainBatch(samples, aggregation).token_weights()
    assert found == pytest.approx([float(w) for w in expected], rel=1e-12)


@pytest.mark.parametrize("aggregation", MEANS)
@given(samples=sample_lists(), budget=st.integers(1, 80))
@settings(max_examples=30, deadline=None)
def test_weights_of_an_update_sum_to_one_over_its_micro_batches(aggregation: str, samples: list[Sample], budget: int) -> None:
    total = sum(float(micro.weights.double().sum()) for micro in TrainBatch(samples, aggregation).micro_batches(budget))
    assert total == pytest.approx(1.0, abs=1e-6)


def test_one_turn_against_six_weighs_as_documented() -> None:
    turn = Sample((1,), (2, 3), (-1.0, -1.0), 1.0, trajectory=0, group=0)
    samples = [turn] + [Sample((1,), (2, 3), (-1.0, -1.0), 1.0, trajectory=1, group=0)] * 6
    share = {name: 2 * TrainBatch(samples, name).token_weights()[0] for name in MEANS}
    assert share == pytest.approx({"token": 1 / 7, "sequence": 1 / 7, "trajectory": 1 / 2, "prompt": 1 / 7})


@given(samples=sample_lists(), budget=st.integers(1, 80), number=st.integers(1, 8), max_length=st.integers(9, 99))
@settings(max_examples=30, deadline=None)
def test_constant_weights_know_the_number_of_turns_and_no_length(samples: list[Sample], budget: int, number: int, max_length: int) -> None:
    for part in TrainBatch(samples, "constant", max_length).minibatches(number, random.Random(0)):
        found = [weight for micro in part.micro_batches(budget) for weight in micro.weights.tolist()]
        assert found == pytest.approx([1 / (len(part.samples) * max_length)] * sum(len(s.response_ids) for s in part.samples))


@given(samples=sample_lists(), number=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_minibatches_cover_all_samples_and_keep_trajectories_whole(samples: list[Sample], number: int, seed: int) -> None:
    parts = TrainBatch(samples, "prompt").minibatches(number, random.Random(seed))
    assert sorted(id(s) for part in parts for s in part.samples) == sorted(map(id, samples))
    where = [{s.trajectory for s in part.samples} for part in parts]
    assert sum(map(len, where)) == len(set().union(*where))
    assert len(parts) == min(number, len(set().union(*where))) and all(where)
    assert all(part.aggregation == "prompt" for part in parts)


def test_minibatches_differ_by_seed_and_repeat_with_it() -> None:
    batch = TrainBatch([Sample((1,), (2,), (-1.0,), 1.0, trajectory, 0) for trajectory in range(12)])
    split = [[[s.trajectory for s in part.samples] for part in batch.minibatches(3, random.Random(seed))] for seed in (1, 1, 2)]
    assert split[0] == split[1] != split[2]
    assert [len(part) for part in split[0]] == [4, 4, 4]


def test_pack_keeps_turns_exactly_as_sampled_with_their_places() -> None:
    first, second = make_turn("memory", prompt=3, response=2), make_turn("answer", prompt=1, response=4)
    groups = [make_group([first], [second]), make_group([first, second])]
    data = pack(groups, Credit([[0.5], [-0.5], [0.25, -0.25]], 1.0, 0))
    assert [(s.trajectory, s.group, s.stage, s.advantage) for s in data.samples] == [
        (0, 0, "memory", 0.5), (1, 0, "answer", -0.5), (2, 1, "memory", 0.25), (2, 1, "answer", -0.25),
    ]  # fmt: skip
    sample = data.samples[0]
    assert (sample.prompt_ids, sample.response_ids, sample.old_logprobs) == (first.prompt_ids, first.response_ids, first.logprobs)


def test_pack_drops_turns_without_pay_and_without_tokens() -> None:
    turns = [make_turn("a"), make_turn("b"), make_turn("c", response=0), make_turn("d")]
    data = pack([make_group(turns)], Credit([[None, 0.0, 1.0, 0.5]], 1.0, 0))
    assert [s.stage for s in data.samples] == ["b", "d"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("train", [("cut", 0.5), ("whole", 0.5)]), ("mask", [("whole", 0.5)]), ("penalize", [("cut", 0.2), ("whole", 0.5)])],
)
def test_truncated_responses_are_treated_by_policy(policy: str, expected: list[tuple[str, float]]) -> None:
    turns = [make_turn("cut", finish="length"), make_turn("whole")]
    data = pack([make_group(turns)], Credit([[0.5, 0.5]], 1.0, 0), truncated=policy, truncated_penalty=0.3)
    assert [s.stage for s in data.samples] == [stage for stage, _ in expected]
    assert [s.advantage for s in data.samples] == pytest.approx([advantage for _, advantage in expected])


def test_truncated_response_never_gets_an_end_token() -> None:
    turn = make_turn(finish="length", response=5)
    (sample,) = pack([make_group([turn])], Credit([[1.0]], 1.0, 0)).samples
    assert sample.response_ids == turn.response_ids


def test_reference_logprobs_follow_their_tokens() -> None:
    samples = [Sample((1,), (2, 3), (-1.0, -2.0), 1.0, 0, 0, "", (-5.0, -6.0)), Sample((1,), (4,), (-3.0,), 1.0, 1, 0, "", (-7.0,))]
    (micro,) = TrainBatch(samples).micro_batches(99)
    assert micro.ref is not None
    assert dict(zip(micro.targets.tolist(), micro.ref.tolist(), strict=True)) == {2: -5.0, 3: -6.0, 4: -7.0}


def test_moving_a_micro_batch_moves_every_tensor() -> None:
    (micro,) = TrainBatch([Sample((1,), (2, 3), (-1.0, -2.0), 1.0, 0, 0)]).micro_batches(99)
    moved = micro.to("meta")
    tensors = [getattr(moved, name) for name in ("ids", "rows", "cols", "targets", "old", "advantages", "weights")]
    assert all(tensor.device == torch.device("meta") for tensor in tensors)
    assert moved.ref is None and moved.samples == micro.samples


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'mean'.*token, sequence, trajectory, prompt"):
        TrainBatch([], "mean")
    for wrong in (None, 0):
        with pytest.raises(ConfigError, match=f"most tokens of a response.*{wrong}"):
            pack([], Credit([], 0.0, 0), "constant", max_length=wrong)
    with pytest.raises(ConfigError, match="'drop'.*train, mask, penalize"):
        pack([], Credit([], 0.0, 0), truncated="drop")
