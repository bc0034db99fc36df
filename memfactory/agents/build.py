"""From names to agents: what a configuration or a checkpoint's memfactory.json says, assembled. Knows no training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from transformers import PreTrainedTokenizerBase

from memfactory.agents.base import BaseAgent
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import looks_local, read_object
from memfactory.common.registry import AGENT_REGISTRY, ENGINE_REGISTRY, MODULE_REGISTRY, build_options
from memfactory.engines.api import PREFIX, APIChat
from memfactory.engines.base import Engine
from memfactory.engines.chat import ChatModel, LocalChat, Models, check_roles
from memfactory.engines.checked import checked_engine
from memfactory.engines.hf import stop_ids_of
from memfactory.engines.load import check_unloaded, check_vocabulary, embedded_tokens, load_causal_lm, load_tokenizer
from memfactory.engines.vllm import VLLMEngine

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

ABOUT = "memfactory.json"
"""The file of a checkpoint that says which agent it was trained as."""

HF_OPTIONS = ("slots", "max_prompt_length", "graphs", "decode_attention", "share_prefixes")
"""What `open_models` takes for the engine hf."""


def build_agent(agent_type: str, tokenizer: PreTrainedTokenizerBase, device: str, options: Mapping[str, Any]) -> BaseAgent:
    """The agent called `agent_type`, with its options and slots."""
    return AGENT_REGISTRY.get(agent_type)(tokenizer, device, **options)


def check_agent(agent_type: str, options: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Refuse an agent, modules, options, stages and roles that nobody knows, without building anything."""
    agent: Any = AGENT_REGISTRY.get(agent_type)
    chosen = {slot: options.get(slot, default) for slot, default in agent.slots.items()}
    keys = [choice.get("type", agent.slots[slot]) if isinstance(choice, dict) else choice for slot, choice in chosen.items()]
    modules: list[Any] = [MODULE_REGISTRY.get(key) for key in keys]
    if agent.__init__ is not BaseAgent.__init__:  # one that is made otherwise may have other options and stages
        return check_roles(roles)
    build_options(agent.__name__, agent.Options, {name: value for name, value in options.items() if name not in chosen})
    return check_roles(roles, [*agent.stages, *(stage for module in modules for stage in module.stages)])


def local_models(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    slots: int = 192,
    bf16: bool = False,
    max_prompt_length: int | None = None,
    roles: Mapping[str, str] | None = None,
    reference: PreTrainedModel | None = None,
    policy: Engine | None = None,
    options: Mapping[str, Any] | None = None,
) -> Models:
    """Chat models over weights in this process: the policy, the reference if its weights are given, and the APIs that roles name.

    `policy`: what samples for the policy; None: the hf engine over the weights themselves. `options`: further ones of `HFEngine`.
    """

    def chat(weights: PreTrainedModel) -> LocalChat:
        engine = checked_engine(weights, stop_ids_of(weights, tokenizer.eos_token_id), slots, bf16, options)
        return LocalChat(tokenizer, engine, max_prompt_length)

    chats: dict[str, ChatModel] = {"policy": chat(model) if policy is None else LocalChat(tokenizer, policy, max_prompt_length)}
    if reference is not None:
        chats["reference"] = chat(reference)
    return Models(chats | api_chats(roles or {}), roles)


def api_chats(roles: Mapping[str, str]) -> dict[str, ChatModel]:
    """A chat model for every role `api:NAME`."""
    return {role: APIChat(role) for role in dict.fromkeys(roles.values()) if role.startswith(PREFIX)}


def trained_as(model: str) -> dict[str, Any]:
    """What the memfactory.json of a checkpoint (a folder, or on the hub) says; nothing if the model has none."""
    path = Path(model).expanduser() / ABOUT
    if not path.is_file() and not model.startswith(PREFIX) and not looks_local(model):
        try:
            path = Path(hf_hub_download(model, ABOUT))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
            return {}  # it has none; or there is no such model here or there, which is said when it is loaded
    kinds = {"agent": str, "agent_options": dict[str, Any], "roles": dict[str, str]}
    about = read_object(path) if path.is_file() else {}
    return read_object(path, {name: kind for name, kind in kinds.items() if name in about}) if about else about


def context_window(model: str) -> int | None:
    """Tokens that a model's config.json says it can take, prompt and answer; None if nothing says so (a model behind an API)."""
    path = Path(model).expanduser() / "config.json"
    if not path.is_file() and not model.startswith(PREFIX) and not looks_local(model):
        try:
            path = Path(hf_hub_download(model, "config.json"))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
            return None  # said when it is loaded
    about = read_object(path) if path.is_file() else {}
    text = about.get("text_config")
    found = about.get("max_position_embeddings") or (text.get("max_position_embeddings") if isinstance(text, dict) else None)
    return found if isinstance(found, int) else None  # a broken file is said where the model is loaded


def answered_by_others(model: str) -> dict[str, str]:
    """{stage: role} of the stages that the checkpoint was not trained to answer itself."""
    return {stage: role for stage, role in trained_as(model).get("roles", {}).items() if role not in ("policy", "policy_nograd")}


def options_over(model: str, agent: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given`, over those that the checkpoint's memfactory.json gives if it is of the same agent."""
    about = trained_as(model)
    options: dict[str, Any] = {}
    if agent == about.get("agent") and about.get("agent_options"):
        # As the agent describes itself: what its slots have from its own options follows them when one is changed below.
        options = build_agent(agent, None, "cpu", about["agent_options"]).describe()  # type: ignore[arg-type]
    for name, value in given.items():
        own = options.get(name)
        same_part = isinstance(own, dict) and isinstance(value, dict) and value.get("type", own.get("type")) == own.get("type")
        options[name] = {**own, **value} if same_part else value  # type: ignore[dict-item]
    return options


def device_of(name: str) -> str:
    """The device that `name` means: auto is the GPU, if there is one."""
    return "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")


def open_models(
    model: str, agent: BaseAgent, *, engine: str = "hf", device: str = "cpu", roles: Mapping[str, str] | None = None,
    reference: str | None = None, options: Mapping[str, Any] | None = None,
) -> Models:  # fmt: skip
    """Who answers: `model` as the policy, and what `roles` name.

    `engine`: hf or vllm (in this process), api (an OpenAI-compatible server, such as vLLM's), or a key of ENGINE_REGISTRY whose
    class is a chat model and takes the model's name. `options` are the engine's: `slots`, ... of hf (HF_OPTIONS), else keyword
    arguments of the class (`base_url`, `timeout`, ... of api; `max_model_len`, ... and `max_prompt_length` of vllm).
    """
    roles, given = dict(roles or {}), dict(options or {})
    if engine == "vllm":
        return Models({"policy": _vllm(model, device, given, roles)} | api_chats(roles), roles)
    if engine != "hf":
        return Models({"policy": _served(engine, model, given)} | api_chats(roles), roles)
    _refuse_unknown(engine, given, HF_OPTIONS)
    if "reference" in roles.values() and not reference:
        raise ConfigError("roles names the reference: say which model it is with --reference.")
    on_gpu = device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    weights = load_causal_lm(model, device, dtype)
    other = load_causal_lm(str(reference), device, dtype) if "reference" in roles.values() else None
    slots, prompt, tokenizer = given.pop("slots", 192), given.pop("max_prompt_length", None), load_tokenizer(model)
    for path, read in ((model, weights), (str(reference), other)):
        if read is not None:
            check_vocabulary(path, embedded_tokens(read), tokenizer)
    return local_models(
        weights, tokenizer, slots=slots, bf16=on_gpu, max_prompt_length=prompt, roles=roles, reference=other,
        options={"longest": longest_turn(agent), **given},
    )  # fmt: skip


def _vllm(model: str, device: str, options: dict[str, Any], roles: Mapping[str, str]) -> LocalChat:
    """A checkpoint in vLLM, behind our own tokenizer and template."""
    own = [parameter.name for parameter in inspect.signature(VLLMEngine).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
    _refuse_unknown("vllm", options, (*own, "max_prompt_length"))
    if "reference" in roles.values():
        raise ConfigError("roles names the reference, and the vllm engine holds one model: serve it and name it api:NAME, or use hf.")
    length, tokenizer = options.pop("max_prompt_length", None), load_tokenizer(model)
    check_unloaded(model, tokenizer)
    return LocalChat(tokenizer, VLLMEngine(model, device=device, **options), length)


def _served(engine: str, model: str, options: Mapping[str, Any]) -> ChatModel:
    """A chat model that is made from its name."""
    kind = ENGINE_REGISTRY.get(engine)
    if not callable(getattr(kind, "chat", None)):
        raise ConfigError(
            f"The engine {engine!r} is not opened by a model's name: {kind.__name__} is no chat model. "
            "Use hf, vllm, api, or one of your own."
        )
    parameters = inspect.signature(kind).parameters.values()
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
        _refuse_unknown(engine, options, [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY])
    return kind(model, **options)


def _refuse_unknown(engine: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in options:
        if name not in known:
            raise unknown_name(f"option of the engine {engine!r}", name, known)


def longest_turn(agent: BaseAgent) -> int:
    """Tokens that a turn may hold, prompt and response, as far as the agent's options say."""
    options = agent.options
    chunk, response = getattr(options, "chunk_size", None) or 4096, getattr(options, "max_generate_length", None) or 1024
    return max(chunk + 2 * response, getattr(options, "max_prompt_length", None) or 0) + 1024
