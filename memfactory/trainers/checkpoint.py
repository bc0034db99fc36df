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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError

from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, DataError, MemFactoryError, in_one_line
from memfactory.common.files import file_hash, new_folder, point, put_back, write_json
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
    try:
        with new_folder(folder) as part:
            model.save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            write_json(part / "memfactory.json", without_secrets(about))
            write_state(part / STATE, {"version": STATE_VERSION, "step": step, **state})
        point(output_dir / "last", folder.name)
    except (OSError, SafetensorError) as error:
        whole = checkpoints(output_dir)
        advice = f" {whole[-1].name} is whole: make room, and --resume True goes on from it." if whole else ""
        raise OSError(f"{folder} could not be written: {in_one_line(error)}.{advice}") from error
    return folder


def refuse_changes(folder: Path, config: TrainConfig, state: dict[str, Any], model: str | None) -> None:
    """`ConfigError` if a run with this configuration, from this `model` (its content), is not the one that made the checkpoint.

    A model or data file that lies elsewhere by now is the same as long as its content is.
    """
    data = file_hash(config.data_path)
    moved = ["data_path"] if data is not None and data == state["data"] else []
    moved += ["model_name_or_path"] if model is not None and model == state.get("model") else []
    changes = config.changes(state["config"], moved)
    if data != state["data"]:
        changes.append(f"content of {config.data_path}: {state['data']} -> {data}")
    if changes:
        raise ConfigError(
            f"{folder} was trained with other options, so a resumed run would be neither: {'; '.join(changes)}. "
            "Give the same options, or another --output_dir."
        )


@contextmanager
def damage_explained(folder: Path, output_dir: Path) -> Iterator[None]:
    """A checkpoint that cannot be taken up is said in words, with the newest older one that is whole, by its name."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}{_older(folder, output_dir)}") from error
    except MemFactoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OSError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged ({type(error).__name__}: {in_one_line(error)}).{_older(folder, output_dir)}") from error


def _older(folder: Path, output_dir: Path) -> str:
    for other in reversed([one for one in checkpoints(output_dir) if _step(one) < _step(folder)]):
        with suppress(DataError, ConfigError):
            load_state(other)
            return f" {other} is whole: to go on from it with --resume True, move {folder.name} away (mv {folder} {folder}.damaged)."
    return ""


def folder_name(step: int) -> str:
    """What a step's checkpoint is called."""
    return f"checkpoint-{step:06d}"


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    for old in output_dir.glob(".checkpoint-*.old"):
        put_back(output_dir / old.name.split(".")[1])
    held = (f"{STATE}/state.json", _PICKLED)
    found = [p for p in output_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and any((p / name).is_file() for name in held)]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.split("-")[1])


def newest(output_dir: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if there is one; one that nobody wants to go on from is an error."""
    found = checkpoints(output_dir)
    if found and not resume:
        raise ConfigError(
            f"{output_dir} already holds {found[-1].name}. Pass --resume True to go on from it, or another --output_dir; "
            "nothing was touched."
        )
    return found[-1] if found else None


def prune(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the one that `best` points at."""
    found = checkpoints(output_dir)
    for stale in (*output_dir.glob(".checkpoint-*.part"), *output_dir.glob(".checkpoint-*.old")):
        _remove(stale)  # what a killed process left: there is one writer, and it is not saving now
    best = (output_dir / "best").resolve()
    for folder in found[: -max(keep, 1)]:
        if folder.resolve() != best:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a folder; of a link, only the link: what it names was put elsewhere by the user."""
    if folder.is_symlink():
        folder.unlink()
    else:
        going = folder.with_name(f".{folder.name.lstrip('.')}.going.part")  # half deleted it must not pass for whole
        folder.rename(going)
        shutil.rmtree(going)


def mark_best(output_dir: Path, folder: Path) -> None:
    """Point `best` at this checkpoint."""
    point(output_dir / "best", folder.name)


def mark(output_dir: Path, newest: Path, best_step: int | None) -> None:
    """Point `last` at the newest checkpoint and `best` at that of `best_step`, if it is there: what a kill left undone is done again."""
    point(output_dir / "last", newest.name)
    if best_step is not None and (best := output_dir / folder_name(best_step)).is_dir():
        mark_best(output_dir, best)


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
