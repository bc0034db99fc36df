"""From names to agents: what a configuration or a checkpoint's memfactory.json says, assembled. Knows no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memfactory.agents.base import BaseAgent
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.engines.api import PREFIX, APIChat
from memfactory.engines.chat import ChatModel, LocalChat, Models
from memfactory.engines.hf import HFEngine, stop_ids_of


def build_agent(agent_type: str, tokenizer: PreTrainedTokenizerBase, device: str, options: Mapping[str, Any]) -> BaseAgent:
    """The agent called `agent_type`, with its options and slots."""
    return AGENT_REGISTRY.get(agent_type)(tokenizer, device, **options)


def local_models(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    slots: int = 192,
    bf16: bool = False,
    max_prompt_length: int | None = None,
    roles: Mapping[str, str] | None = None,
    reference: PreTrainedModel | None = None,
) -> Models:
    """Chat models over weights in this process: the policy, the reference if its weights are given, and the APIs that roles name."""

    def chat(weights: PreTrainedModel) -> LocalChat:
        engine = HFEngine(weights, stop_ids_of(weights, tokenizer.eos_token_id), slots, bf16)
        return LocalChat(tokenizer, engine, max_prompt_length)

    chats: dict[str, ChatModel] = {"policy": chat(model)}
    if reference is not None:
        chats["reference"] = chat(reference)
    return Models(chats | api_chats(roles or {}), roles)


def api_chats(roles: Mapping[str, str]) -> dict[str, ChatModel]:
    """A chat model for every role `api:NAME`."""
    return {role: APIChat(role) for role in dict.fromkeys(roles.values()) if role.startswith(PREFIX)}
