"""A trainer's state as files that hold data and nothing that runs: `state.json` beside `tensors-*.safetensors`.

What comes back is what went in, bit for bit: dicts with any keys, lists, tuples, numbers (NaN and infinities too), texts and
tensors. A pickle would run whatever the folder's maker put into it. Knows no trainer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memfactory.common.errors import DataError
from memfactory.common.files import read_json, write_json

_FILE_BYTES = 1 << 30
"""A file of tensors is closed at this size: some versions of safetensors hold a copy of a whole file while they write it."""
_TENSOR, _TUPLE, _ITEMS, _FLOAT = "@tensor", "@tuple", "@items", "@float"
"""A dict with one of these as its only key stands for what JSON lacks."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Fill a new folder with a state."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    written = _encoded(state, tensors)
    for number, part in enumerate(_parts(tensors), 1):
        seen: set[int] = set()
        save_file({name: _apart(tensor, seen) for name, tensor in part.items()}, folder / f"tensors-{number:05d}.safetensors")
    write_json(folder / "state.json", written)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, tensors on the CPU; a file that is missing, cut off or damaged is `DataError`."""
    advice = "Go on from an older checkpoint by moving this one away, or copy it again from where it is whole."
    try:
        tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("tensors-*.safetensors")):
            tensors |= load_file(file)
        state = _decoded(read_json(folder / "state.json"), tensors)
    except KeyError as error:
        raise DataError(f"{folder} is damaged: its files hold no tensor {error.args[0]}. {advice}") from error
    except (DataError, SafetensorError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}). {advice}") from error
    if not isinstance(state, dict):
        raise DataError(f"{folder} is damaged: state.json holds no mapping. {advice}")
    return state


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(map(_bytes, part.values())) + _bytes(tensor) > _FILE_BYTES:
            yield part
            part = {}
        part[name] = tensor
    if part:
        yield part


def _apart(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor on the CPU, in memory that no other of its file uses: safetensors refuses what is shared."""
    kept = tensor.detach().contiguous().cpu()
    kept = kept.clone() if kept.untyped_storage().data_ptr() in seen else kept
    seen.add(kept.untyped_storage().data_ptr())
    return kept


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; its tensors are put into `tensors` under numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("@") for key in value):
            return {key: _encoded(item, tensors) for key, item in value.items()}
        return {_ITEMS: [[_encoded(key, tensors), _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encoded(item, tensors) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(float(value))}
    json.dumps(value)  # what JSON does not know is an error here, where the value is at hand
    return value


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_decoded(value[_TUPLE], tensors))
    if _ITEMS in value:
        return {_decoded(key, tensors): _decoded(item, tensors) for key, item in value[_ITEMS]}
    if _FLOAT in value:
        return float(value[_FLOAT])
    return {key: _decoded(item, tensors) for key, item in value.items()}
