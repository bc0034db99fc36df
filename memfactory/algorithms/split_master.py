"""fp32 master weights in two halves: the bf16 weight that the model computes with, and 16 bits that restore the fp32 value.

An update of the size of a learning rate is far below the last bit of a bf16 weight: AdamW on bf16 weights alone keeps a tenth
of it. A second, fp32 copy of the weights costs 4 bytes a parameter; the missing half of each number costs 2. The bf16 half is
the model's own parameter, so the sampler and the update read the same tensor. Knows no optimizer.

The halves are the fp32 bits as an integer, upper half rounded to nearest: bits = upper * 2**16 + residual, with the residual in
[-2**15, 2**15). That is exact for every fp32 value, in integer arithmetic modulo 2**32. The upper half differs from torch's own
cast where fp32 stands exactly half-way between two bf16 values (one in 2**16): torch takes the even one, this the one farther
from zero. What is beyond bf16's largest finite value reads as infinite in the upper half, and some NaNs as a number, though
both come back whole; neither is a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """(bf16, int16 residual) of an fp32 tensor, of its shape."""
    bits = master.contiguous().view(torch.int32)
    # The sum may wrap around for a negative NaN: two's complement takes it back in `join`.
    upper = (bits + (1 << 15)) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def join(weight: Tensor, residual: Tensor) -> Tensor:
    """The fp32 tensor that `split` took apart, to the bit."""
    return ((weight.view(torch.int16).to(torch.int32) << 16) + residual.to(torch.int32)).view(torch.float32)


def split_model(model: nn.Module, grad_dtype: torch.dtype = torch.float32) -> dict[nn.Parameter, Tensor]:
    """Make every fp32 parameter bf16 in place; {trained parameter: its residual}, zeros where the weight was bf16 already.

    Gradients of trained parameters are kept and added up in `grad_dtype`: in bf16 a sum of hundreds of micro-batches loses
    every contribution below 1/512 of what it has reached.
    """
    residuals: dict[nn.Parameter, Tensor] = {}
    for parameter in model.parameters():
        residual = None
        if parameter.dtype in (torch.float32, torch.float16):
            parameter.data, residual = split(parameter.data.float())
        if parameter.requires_grad:
            parameter.grad_dtype = grad_dtype
            residuals[parameter] = torch.zeros_like(parameter, dtype=torch.int16) if residual is None else residual
    return residuals
