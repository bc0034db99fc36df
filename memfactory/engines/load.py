"""Models and tokenizers from folders or hub names. What is missing is one clear error; knows no training and no agent."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from memfactory.common.errors import MissingFileError
from memfactory.common.files import looks_local

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

HUB = {"Qwen3-1.7B": "Qwen/Qwen3-1.7B", "Qwen3-4B-Instruct": "Qwen/Qwen3-4B-Instruct-2507"}
"""{folder name of the public launchers: repository on the hub}."""


def how_to_get(path: str) -> str:
    """The command that puts a published model at `path`; any other model has an owner to be named."""
    name = Path(path).name
    return f"hf download {HUB.get(name, f'OWNER/{name}')} --local-dir {path}"


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer from a folder or a hub name; what is missing is one clear error that says how to get it."""
    tokenizer = load_tokenizer(path)
    return load_causal_lm(path, device, dtype), tokenizer


def load_causal_lm(path: str, device: str = "cpu", dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The model alone, for a caller that has its tokenizer already; the dtype "auto" is the checkpoint's."""
    source = source_of(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise MissingFileError(f"The model {path!r} could not be loaded: {_why(error)}") from error
    return model.to(device)  # type: ignore[arg-type]


def load_config(path: str) -> PretrainedConfig:
    """A model's configuration alone."""
    source = source_of(path)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MissingFileError(f"The configuration of {path!r} could not be loaded: {_why(error)}") from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer; one without a padding token pads with its end token."""
    source = source_of(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MissingFileError(f"The tokenizer of {path!r} could not be loaded: {_why(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _why(error: Exception) -> str:
    """What transformers says in one line. It would ask at the terminal whether to run a folder's own code: we never do."""
    said = str(error)
    if "trust_remote_code" in said:
        return "it comes with Python code of its own (auto_map in its config.json), which is never run. Use a class that transformers has."
    return next(iter(said.splitlines()), type(error).__name__)


def stop_ids(eos_token_id: int | None, *configs: Any) -> frozenset[int]:
    """Every end-of-turn token: the tokenizer's and those that the model's configurations name."""
    named: set[int] = set() if eos_token_id is None else {eos_token_id}
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        named |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}
    return frozenset(named)


def stop_ids_at(path: str) -> frozenset[int]:
    """Every end-of-turn token of a model whose weights are not loaded here."""
    configs: list[Any] = [load_config(path)]
    with contextlib.suppress(OSError):  # a checkpoint need not have one
        configs.append(GenerationConfig.from_pretrained(source_of(path)))
    return stop_ids(load_tokenizer(path).eos_token_id, *configs)


def source_of(path: str) -> str:
    """What transformers is asked for: a folder that holds a model (`~` expanded), or the hub name as it stands."""
    folder = Path(path).expanduser()
    if looks_local(path) and not (folder / "config.json").is_file():
        raise MissingFileError(
            f"No model at {path!r} (no config.json there). The tiny model ships as models/tiny; a published one is fetched with "
            f"`{how_to_get(path)}` and named by MODEL_PATH or --model_name_or_path."
        )
    return str(folder) if folder.exists() else path


def model_hash(path: str) -> str:
    """16 hex digits over what decides a model folder's answers: weights, configuration, tokenizer and chat template.

    The trainer's state and notes beside them do not count. A hub name that is not a folder here stands for itself.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(f for pattern in _MODEL_FILES for f in folder.glob(pattern)):
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


_MODEL_FILES = (
    "*.safetensors",
    "*.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
