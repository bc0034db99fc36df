"""Checkpoints: plain Hugging Face folders with the trainer's state beside. Whole or absent, whatever kills the process.

output_dir/
  checkpoint-000040/   model.safetensors config.json tokenizer... memfactory.json   (transformers and vLLM load it)
                       trainer_state/   (optimizers, counters, random states: all that a bitwise resume needs; JSON and safetensors,
                       apart from the weights, since vLLM reads every *.safetensors that stands beside config.json)
  last -> checkpoint-000040      best -> checkpoint-000030
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from memfactory.common.errors import ConfigError
from memfactory.common.files import new_folder, point, write_json
from memfactory.common.redaction import without_secrets
from memfactory.engines.load import load_causal_lm
from memfactory.trainers.state_files import read_state, write_state

STATE_VERSION = 3
STATE = "trainer_state"
_PICKLED = "trainer_state.pt"
"""What versions 1 and 2 were called: a pickle, which is never read, for reading it runs what stands in it."""
FORMAT = 1
"""Of memfactory.json."""


class Saved(Protocol):
    """What writes itself into a folder: a transformers model or tokenizer, or another part that is trained."""

    def save_pretrained(self, save_directory: Path, /) -> Any:
        """Write all that is needed to load it again."""


_NAME = re.compile(r"checkpoint-(\d{6,})")


def save_checkpoint(
    output_dir: Path, step: int, model: Saved, tokenizer: Saved | None, about: dict[str, Any], state: dict[str, Any]
) -> Path:
    """Write `checkpoint-<step>` whole, then point `last` at it. `about` becomes memfactory.json; what is no LM has no tokenizer."""
    folder = output_dir / folder_name(step)
    output_dir.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as part:
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        write_json(part / "memfactory.json", without_secrets(about))
        write_state(part / STATE, {"version": STATE_VERSION, "step": step, **state})
    point(output_dir / "last", folder.name)
    return folder


def folder_name(step: int) -> str:
    """What a step's checkpoint is called."""
    return f"checkpoint-{step:06d}"


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    held = (f"{STATE}/state.json", _PICKLED)
    found = [p for p in output_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and any((p / name).is_file() for name in held)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def prune(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the one that `best` points at."""
    for stale in (*output_dir.glob(".checkpoint-*.part"), *output_dir.glob(".checkpoint-*.old")):
        shutil.rmtree(stale)  # what a killed process left: there is one writer, and it is not saving now
    best = (output_dir / "best").resolve()
    for folder in checkpoints(output_dir)[: -max(keep, 1)]:
        if folder.resolve() != best:
            shutil.rmtree(folder)


def mark_best(output_dir: Path, folder: Path) -> None:
    """Point `best` at this checkpoint."""
    point(output_dir / "best", folder.name)


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint; another version of it is an error, not a guess."""
    if (folder / _PICKLED).is_file() and not (folder / STATE).exists():
        raise ConfigError(
            f"{folder} holds {_PICKLED} of an older version: a pickle, which can run code when it is read, so it is not read. "
            f"Finish that run with the version that began it, or start a new one from its weights: --model_name_or_path {folder} and "
            "another --output_dir."
        )
    state = read_state(folder / STATE)
    if state.get("version") != STATE_VERSION:
        raise ConfigError(f"{folder} has trainer state version {state.get('version')}, this code reads {STATE_VERSION}.")
    return state


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, in the type they were trained in."""
    return load_causal_lm(str(folder), dtype="auto").state_dict()


def random_states() -> dict[str, Any]:
    """The state of every global random generator."""
    state: Any = np.random.get_state()
    name, words, *rest = state
    return {
        "python": random.getstate(),
        "numpy": [name, words.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
