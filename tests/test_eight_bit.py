"""Promise: an eight-bit number is the nearest of 256, relative to the largest of its block, and no second moment becomes zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.algorithms.eight_bit import BLOCK, quantised, restored, table

CPU = torch.device("cpu")


def test_the_tables_are_those_of_dynamic_tree_quantisation() -> None:
    """Dettmers et al., section 2.1: seven decades; the golden numbers are by hand."""
    signed, unsigned = table(True, CPU), table(False, CPU)
    assert len(signed) == len(unsigned) == len(signed.unique()) == len(unsigned.unique()) == 256
    # The first decade of the signed table: 64 middles between .1 and 1. The last: one, of .1e-6 and 1e-6.
    assert signed[-1] == 1 and signed[-2] == pytest.approx(1 - 0.9 / 128) and signed[-65] == pytest.approx(0.1 + 0.9 / 128)
    assert signed[127] == 0 and signed[128] == pytest.approx(0.55e-6)
    assert torch.equal(signed[:127], -signed[128:255].flip(0)), "all but 1 have a negative"
    # Unsigned, the bit of the sign is one more of precision.
    assert unsigned[0] == 0 and unsigned[1] == pytest.approx(0.325e-6) and unsigned[-2] == pytest.approx(1 - 0.9 / 256)


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=600))
def test_what_comes_back_is_within_half_a_step_of_the_block_s_largest(values: list[float]) -> None:
    given_ = torch.tensor(values)
    codes, scales = quantised(given_, signed=True)
    assert codes.shape == given_.shape and len(scales) == -(-len(values) // BLOCK)
    back = restored(codes, scales, signed=True)
    largest = scales.repeat_interleave(BLOCK)[: len(values)]
    assert bool(((back - given_).abs() <= 0.0071 * largest + 1e-30).all())


def test_relative_errors_are_small_over_four_decades() -> None:
    values = torch.logspace(-3, 0, BLOCK)
    back = restored(*quantised(values, signed=True), signed=True)
    assert float((back / values - 1).abs().max()) < 0.29  # the third decade has 16 codes between .001 and .01
    back = restored(*quantised(values, signed=False), signed=False)
    assert float((back / values - 1).abs().max()) < 0.15


def test_nothing_above_zero_becomes_zero_unsigned() -> None:
    values = torch.tensor([1.0, 1e-30, 0.0])
    assert (restored(*quantised(values, signed=False), signed=False) > 0).tolist() == [True, True, False]


def test_a_block_of_zeros_stays_zero_and_one_block_does_not_see_another() -> None:
    values = torch.cat([torch.zeros(BLOCK), torch.full((BLOCK,), 1e6), torch.full((3,), 1e-6)])
    back = restored(*quantised(values, signed=True), signed=True)
    assert not back[:BLOCK].any() and torch.allclose(back, values)
