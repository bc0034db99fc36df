"""Models and tokenizers from folders or hub names. What is missing is one clear error; knows no training and no agent."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from memfactory.common.errors import ConfigError, MissingFileError
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
    model = load_causal_lm(path, device, dtype)
    check_vocabulary(path, embedded_tokens(model), tokenizer)
    return model, tokenizer


def load_causal_lm(path: str, device: str = "cpu", dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The model alone, for a caller that has its tokenizer already; the dtype "auto" is the checkpoint's.

    A checkpoint that does not give every weight of the model, each with finite numbers, is one error that names them.
    """
    source = source_of(path)
    if (Path(source) / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path!r} holds adapters of another model, not a model. Merge them first (peft: `model.merge_and_unload()`, then save it); "
            "the checkpoints that training with --lora_r writes are merged already."
        )
    try:
        # Loaded even if shapes differ: all that is wrong is said at once, below.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MissingFileError(f"The model {path!r} could not be loaded: {_why(error)}") from error
    model, found = loaded[0].to(device), loaded[1]
    _refuse_damaged(path, model, found)
    return model


def _refuse_damaged(path: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """A `ConfigError` if weights were made up, left over, of another shape or are not numbers. transformers leaves tied ones out."""
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()} | _OLD_BUFFERS
    shapes = {name: f"{name} ({_shape(there)} there, {_shape(wanted)} in the model)" for name, there, wanted in found["mismatched_keys"]}
    wrong = {
        "missing": sorted(set(found["missing_keys"]) - shapes.keys()),
        "of no part of the model": sorted(name for name in found["unexpected_keys"] if name.rpartition(".")[2] not in buffers),
        "of another shape": sorted(shapes.values()),
        "not finite (NaN or infinite)": [] if shapes or found["missing_keys"] else not_finite(model.named_parameters()),
    }
    said = [f"{len(names)} {what}: {few(names)}" for what, names in wrong.items() if names]
    if said or found["error_msgs"]:
        raise ConfigError(
            f"The weights of {path!r} are not those of its configuration ({type(model).__name__}), and would be partly random or "
            f"ignored. {'; '.join([*said, *found['error_msgs']])}. Fetch or save the checkpoint again; nothing was computed with it."
        )


_OLD_BUFFERS = {"inv_freq", "masked_bias"}
"""Tables that older checkpoints hold and every model computes for itself."""


def not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of those that hold a number that is none."""
    # A sum is a tenth of the work and needs no memory; only where it is not finite are the numbers looked at.
    suspects = [(name, t) for name, t in weights if t.is_floating_point() and not t.detach().sum(dtype=torch.float32).isfinite()]
    return sorted(name for name, tensor in suspects if not tensor.isfinite().all())


def few(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes)) or "one number"


def check_unloaded(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """What can be known of a checkpoint that another program will load: that its tokenizer fits and its numbers are finite."""
    check_vocabulary(path, int(load_config(path).get_text_config().vocab_size), tokenizer)
    files = sorted(Path(source_of(path)).glob("*.safetensors"))
    if damaged := [name for file in files for name in not_finite(_tensors_of(file))]:
        raise ConfigError(f"The weights of {path!r} are not finite (NaN or infinite) in {len(damaged)} tensors: {few(damaged)}.")


def _tensors_of(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, "pt") as held:
        for name in held.keys():  # noqa: SIM118
            yield name, held.get_tensor(name)


def embedded_tokens(model: PreTrainedModel) -> int:
    """How many tokens a model has rows for."""
    embedding = model.get_input_embeddings()
    return len(embedding.weight) if hasattr(embedding, "weight") else int(model.config.get_text_config().vocab_size)  # type: ignore[arg-type]


def check_vocabulary(path: str, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """A `ConfigError` if the tokenizer has tokens for which the model has no row."""
    added = {at: str(token) for at, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    tokens = max(len(tokenizer), max(added, default=-1) + 1)
    if tokens > rows:
        beyond = [text for at, text in sorted(added.items()) if at >= rows]
        named = f" The first beyond it: {few([repr(text) for text in beyond])}." if beyond else ""
        raise ConfigError(
            f"The tokenizer of {path!r} has {tokens} tokens and the model embeds {rows}.{named} Use the tokenizer that the model was "
            "trained with, or resize the embedding (`model.resize_token_embeddings`), train it, and save both."
        )


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
