"""What vLLM needs inside its own workers to take new weights on a CPU. Imports nothing of this package: a server may load it alone.

vLLM 0.32 multiplies by a packed copy of each matrix on a CPU. `reload_weights` packs anew what it loads, but not an output head that
is tied to the embedding: that would go on with the old weights, silently.

    python -m vllm.entrypoints.openai.api_server ... --worker-extension-cls memfactory.engines.vllm_worker.Renewable
"""

from __future__ import annotations

from typing import Any

from torch import nn


def pack_again(model: nn.Module) -> int:
    """Renew the packed copies of matrices that are kept unpacked too (a tied head); returns how many. Does nothing off the CPU."""
    kept: list[Any] = [part for part in model.modules() if hasattr(part, "cpu_linear")]
    kept = [part for part in kept if part.weight.numel()]
    for part in kept:
        part.quant_method.process_weights_after_loading(part)
    return len(kept)


class Renewable:
    """Mixed into vLLM's worker by `--worker-extension-cls`: `renew_weights` is then a method for `/collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def renew_weights(self, weights_path: str) -> None:
        """Take the weights of the checkpoint at `weights_path`, all of them."""
        self.reload_weights(weights_path=weights_path)
        pack_again(self.model_runner.get_model())
