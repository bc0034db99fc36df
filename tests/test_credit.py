"""Promise: each trained turn is paid by its stage's reward, compared within the group per trajectory; nothing else is paid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers_algorithms import make_group, make_turn

from memfactory.algorithms.advantages import std_advantage
from memfactory.algorithms.credit import assign_credit
from memfactory.common.errors import ConfigError
from memfactory.common.types import Turn


def memory_and_answer() -> list[Turn]:
    return [make_turn("memory"), make_turn("answer")]


def test_stage_reward_pays_its_stage_and_default_pays_the_rest() -> None:
    groups = [make_group(memory_and_answer(), memory_and_answer())]
    rewards = {"memory": torch.tensor([1.0, 0.0]), "default": torch.tensor([0.0, 0.4])}
    assert assign_credit(groups, rewards).advantages == [
        [pytest.approx(0.5), pytest.approx(-0.2)],
        [pytest.approx(-0.5), pytest.approx(0.2)],
    ]


def asked_twice(*, trainable: bool = True) -> list[Turn]:
    answers = [replace(make_turn("answer", trainable=trainable), question=number) for number in (0, 1)]
    return [make_turn("update"), *answers]


def test_a_turn_that_works_for_one_question_is_paid_by_that_question() -> None:
    groups = [make_group(asked_twice(), asked_twice())]
    rewards = {"default": torch.tensor([0.75, 0.25]), "question": torch.tensor([[1.0, 0.5], [0.0, 0.5]])}
    found = assign_credit(groups, rewards)
    assert found.advantages == [[0.25, 0.5, None], [-0.25, -0.5, None]], "both answered the second question alike: nothing to learn"
    staged = assign_credit(groups, rewards | {"answer": torch.tensor([1.0, 0.0])})
    assert staged.advantages == [[0.25, 0.5, 0.5], [-0.25, -0.5, -0.5]], "a reward of the stage's own name comes first"


def test_examples_may_have_fewer_questions_and_a_judge_may_fail_on_one() -> None:
    one = [make_turn("update"), replace(make_turn("answer"), question=0)]
    groups = [make_group(asked_twice(), asked_twice(), asked_twice()), make_group(one, one)]
    nan = math.nan
    questions = torch.tensor([[1.0, nan], [0.0, 1.0], [0.0, 0.0], [1.0, nan], [0.0, nan]])
    found = assign_credit(groups, {"default": torch.tensor([nan, 0.5, 0.0, 1.0, 0.0]), "question": questions})
    assert found.advantages[0] == [None, pytest.approx(2 / 3), None], "what the judge lost is left out, the rest is not"
    assert found.advantages[1] == [0.25, pytest.approx(-1 / 3), 0.5]
    assert found.advantages[3:] == [[0.5, 0.5], [-0.5, -0.5]]
    assert found.unscorable == 1, "an example with fewer questions has lost nothing"
    lost = make_group(asked_twice(), asked_twice())
    lost.trajectories[0].error = "time-out"
    found = assign_credit([lost], {"default": torch.tensor([1.0, 0.0]), "question": torch.tensor([[1.0, 1.0], [0.0, 0.0]])})
    assert found.advantages == [[None] * 3] * 2 and found.unscorable == 1


def test_question_rewards_of_another_shape_are_refused() -> None:
    groups = [make_group(asked_twice(), asked_twice())]
    for wrong in (torch.zeros(2), torch.zeros(3, 2), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"rewards\['question'\] must be \[2, questions\]"):
            assign_credit(groups, {"default": torch.zeros(2), "question": wrong})


def test_without_default_a_stage_that_is_not_paid_is_not_trained() -> None:
    groups = [make_group(memory_and_answer(), memory_and_answer())]
    found = assign_credit(groups, {"answer": torch.tensor([1.0, 0.0])}).advantages
    assert found == [[None, 0.5], [None, -0.5]]


def test_components_with_a_slash_are_not_paid() -> None:
    groups = [make_group(memory_and_answer(), memory_and_answer())]
    rewards = {"default": torch.tensor([1.0, 0.0]), "memory/f1": torch.tensor([9.0, math.nan]), "default/em": torch.tensor([5.0, 2.0])}
    found = assign_credit(groups, rewards)
    assert found == assign_credit(groups, {"default": rewards["default"]})
    assert found.unscorable == 0


def test_a_trajectory_with_more_turns_does_not_change_its_groups_baseline() -> None:
    short, long = [make_turn()], [make_turn() for _ in range(6)]
    found = assign_credit([make_group(long, short, short)], {"default": torch.tensor([1.0, 0.0, 0.0])}).advantages
    assert found[0] == [pytest.approx(2 / 3)] * 6
    assert found[1] == found[2] == [pytest.approx(-1 / 3)]


def test_groups_are_not_compared_with_each_other() -> None:
    groups = [make_group([make_turn()], [make_turn()]), make_group([make_turn()], [make_turn()], [make_turn()])]
    found = assign_credit(groups, {"default": torch.tensor([1.0, 1.0, 3.0, 0.0, 0.0])})
    assert [row[0] for row in found.advantages[2:]] == pytest.approx([2.0, -1.0, -1.0])
    assert found.advantages[:2] == [[None], [None]], "a group without variance has nothing to teach"
    assert found.informative == 0.5


def test_an_attempt_at_its_groups_mean_stays_in_the_batch() -> None:
    found = assign_credit([make_group(*[[make_turn()] for _ in range(3)])], {"default": torch.tensor([0.0, 0.5, 1.0])})
    assert [row[0] for row in found.advantages] == pytest.approx([-0.5, 0.0, 0.5])


def test_nan_rewards_and_failed_attempts_are_left_out_and_counted() -> None:
    group = make_group(*[[make_turn()] for _ in range(4)])
    group.trajectories[3].error = "server is gone"
    found = assign_credit([group], {"default": torch.tensor([1.0, math.nan, 0.0, 1.0])})
    assert found.advantages == [[0.5], [None], [-0.5], [None]]
    assert found.unscorable == 2


def test_unscorable_in_one_stage_still_trains_the_others() -> None:
    groups = [make_group(memory_and_answer(), memory_and_answer(), memory_and_answer())]
    rewards = {"memory": torch.tensor([math.nan, 1.0, 0.0]), "answer": torch.tensor([1.0, 0.0, 0.5])}
    found = assign_credit(groups, rewards)
    assert found.advantages == [[None, 0.5], [0.5, -0.5], [-0.5, 0.0]]
    assert found.unscorable == 1


def test_turns_that_are_not_trainable_get_none() -> None:
    turns = [make_turn("memory", trainable=False), make_turn("answer")]
    found = assign_credit([make_group(turns, turns)], {"default": torch.tensor([1.0, 0.0])}).advantages
    assert found == [[None, 0.5], [None, -0.5]]


def test_final_turn_trains_only_the_last_turn_that_can_be_trained() -> None:
    first = [make_turn(), make_turn(), make_turn("answer")]
    second = [make_turn(), make_turn(), make_turn("answer", trainable=False)]
    found = assign_credit([make_group(first, second)], {"default": torch.tensor([1.0, 0.0])}, credit="final_turn").advantages
    assert found == [[None, None, 0.5], [None, -0.5, None]]


def test_the_given_normalisation_is_used() -> None:
    group = make_group([make_turn()], [make_turn()])
    found = assign_credit([group], {"default": torch.tensor([1.0, 0.0])}, std_advantage).advantages
    assert found[0][0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))


def test_the_callers_rewards_are_not_changed() -> None:
    group = make_group([make_turn()], [make_turn()])
    group.trajectories[0].error = "server is gone"
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assign_credit([group], {"default": rewards})
    assert rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), ()])
def test_rewards_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rewards\['default'\] must be \[2\]"):
        assign_credit([make_group([make_turn()], [make_turn()])], {"default": torch.zeros(shape)})


def test_unknown_credit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'last'.*trajectory, final_turn"):
        assign_credit([], {}, credit="last")
