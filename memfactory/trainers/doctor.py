"""`memfactory doctor MODEL`: is this a model that can be sampled from and trained here? One line a question, with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import GenerationConfig, PreTrainedTokenizerBase

from memfactory.agents.build import device_of
from memfactory.algorithms.logprobs import evaluating, plain_head, without_dropout
from memfactory.algorithms.tree_attention import choose_backend
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, UserError, unknown_name
from memfactory.common.flags import option, parse_flags
from memfactory.common.types import Sampling
from memfactory.engines.base import run
from memfactory.engines.checked import checked_engine, engine_verdict
from memfactory.engines.hf import stop_ids_of
from memfactory.engines.load import load_model
from memfactory.engines.probe import Verdict, prompts_for
from memfactory.trainers.agreement import update_verdict
from memfactory.trainers.memory_plan import GIB, plan_memory

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

USAGE = "memfactory doctor MODEL [--device cuda] [--dtype bfloat16] [--attn sdpa]     MODEL: a folder or a hub name"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

GREEDY = 16
"""Tokens that are compared with `generate`."""


@dataclass
class DoctorConfig:
    """Options of `memfactory doctor`."""

    device: str = option("auto", "auto, cpu, cuda, cuda:N.")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: bfloat16 on a GPU, float32 on a CPU, as evaluation takes them.")
    attn: str = option("auto", "transformers' attention: sdpa, eager, flash_attention_2; auto: the model's own.")


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question."""

    what: str
    well: bool
    said: str
    advice: str = ""


def main(arguments: Sequence[str], console: Console) -> int:
    """The command, from its words."""
    config, words = parse_flags(DoctorConfig, arguments, "memfactory doctor", USAGE, 1)
    return doctor(words, config, console)


def doctor(words: Sequence[str], config: DoctorConfig, console: Console) -> int:
    """Ask everything about a model and show the answers; 0 if all is well, else 1."""
    if not words:
        raise UserError(f"memfactory doctor takes a model: {USAGE}.")
    if config.dtype not in (*DTYPES, "auto"):
        raise unknown_name("dtype", config.dtype, (*DTYPES, "auto"))
    table = Table(box=None, pad_edge=False, show_header=False)
    well = True
    for found in findings(words[0], config):
        mark = "[green]ok[/]" if found.well else "[bold red]no[/]"
        table.add_row(mark, found.what, escape(found.said) + (f"\n[dim]{escape(found.advice)}[/]" if found.advice else ""))
        well = well and found.well
    console.print(table)
    console.print(
        "This model can be sampled from and trained here." if well else "Lines marked no: read what to do beside them.", soft_wrap=True
    )
    return 0 if well else 1


def findings(path: str, config: DoctorConfig) -> Iterator[Finding]:
    """Every answer, in the order in which a run would come to need it."""
    device = device_of(config.device)
    dtype = DTYPES.get(config.dtype, torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        model, tokenizer = load_model(path, device, dtype)
        if config.attn != "auto":
            model.set_attn_implementation(config.attn)
    except (UserError, ValueError, ImportError) as error:
        yield Finding("loads", False, str(error), "Nothing else was asked.")
        return
    size = sum(parameter.numel() for parameter in model.parameters())
    kind = f"{type(model).__name__}, {size / 1e6:,.1f} million weights, {str(dtype).removeprefix('torch.')} on {device}"
    yield Finding("loads", True, f"{kind}; every tensor is there, finite, of its shape; the tokenizer fits the vocabulary")
    yield _template(tokenizer)
    yield _stops(model, tokenizer)
    yield from _engine(model)
    yield from _update(model)
    yield _memory(path, device)


def _template(tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether messages become a prompt."""
    what, advice = "template", "Take an instruction-tuned checkpoint, or set tokenizer.chat_template and save the tokenizer."
    if not tokenizer.chat_template:
        return Finding(what, False, "the tokenizer has no chat template", advice)
    try:
        ids = _rendered(tokenizer, [{"role": "user", "content": "Where is the key?"}], True)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # jinja's own errors are RuntimeErrors or ValueErrors by their base
        return Finding(what, False, f"the template fails on one user message: {error}", advice)
    return Finding(what, True, f"a question of four words is a prompt of {len(ids)} tokens")


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], ask: bool) -> list[int]:
    made: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=True, return_dict=False, enable_thinking=False)
    return list(made)


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether generation ends where the template ends a turn."""
    stops = stop_ids_of(model, tokenizer.eos_token_id)
    named = ", ".join(f"{tokenizer.convert_ids_to_tokens(at)} ({at})" for at in sorted(stops)) or "none"
    advice = "Name the token that ends a turn in generation_config.json (eos_token_id), or answers run to their limit."
    if not stops:
        return Finding("stop tokens", False, named, advice)
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "Where is the key?"}, {"role": "assistant", "content": "Under the mat."}]
        try:
            tail = _rendered(tokenizer, turn, False)[-3:]
        except (ValueError, TypeError, KeyError, RuntimeError):
            tail = list(stops)
        if not stops & set(tail):
            return Finding("stop tokens", False, f"{named}; but the template ends a turn with {tokenizer.decode(tail)!r}", advice)
    return Finding("stop tokens", True, named)


def _engine(model: PreTrainedModel) -> Iterator[Finding]:
    """The hf engine against the model's forward, and against `generate`."""
    what = "engine = forward"
    try:
        way, verdict, wrong = engine_verdict(model, False, {})
    except ConfigError as error:
        yield Finding(what, False, str(error))
        return
    yield _compared(what, f"sampled {way}", verdict, wrong, "Sample it with --engine vllm, or serve it (--engine api, --rollout_servers).")
    if verdict.agrees:
        yield _greedy(model)


def _compared(what: str, way: str, verdict: Verdict, wrong: list[str], advice: str) -> Finding:
    held = f"{way}; {len(verdict.cases)} comparisons, the furthest {verdict.worst}; up to {verdict.covered} tokens"
    held += f" ({verdict.beyond}: longer was not compared)" if verdict.beyond else ""
    if not verdict.agrees:
        return Finding(what, False, str(verdict.worst), advice)
    return Finding(what, True, held, f"Not otherwise: {wrong[0]}" if wrong else "")


def _greedy(model: PreTrainedModel) -> Finding:
    """The likeliest tokens, by the engine and by transformers' own generation with its own cache."""
    what, prompt = "engine = generate", prompts_for(model).long
    engine = checked_engine(model, frozenset(), 2)
    prompt = prompt[: max(1, engine.max_length - GREEDY)]
    ours = run(engine.complete(prompt, Sampling(GREEDY, 0.0, stream=(1,)))).ids
    ids = torch.tensor([prompt], device=model.device)
    settings = GenerationConfig(do_sample=False, max_new_tokens=len(ours), pad_token_id=0, eos_token_id=None)
    with torch.no_grad(), evaluating(model):
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, len(prompt) :].tolist()  # type: ignore[operator]
        differs = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if differs is None:
            return Finding(what, True, f"the same {len(ours)} likeliest tokens after a prompt of {len(prompt)}")
        row = model(input_ids=torch.tensor([(*prompt, *ours[:differs])], device=model.device), use_cache=False).logits[0, -1].float()
    best, gap = int(row.argmax()), float(abs(row[ours[differs]] - row[theirs[differs]]) / row.std())
    said = f"token {differs + 1} is {ours[differs]} here and {theirs[differs]} there; their logits differ by {gap:.1g} of the spread"
    ours_is_right = best == ours[differs]
    tie = gap < (1e-3 if model.dtype == torch.float32 else 0.1)
    advice = "" if tie else "`generate` differs from its own forward: the checkpoint's cache is at fault." if ours_is_right else "Use vllm."
    return Finding(what, tie or ours_is_right, said + (": a tie" if tie else ""), advice)


def _update(model: PreTrainedModel) -> Iterator[Finding]:
    """What a step of training differentiates, and what it does without."""
    backend, config = choose_backend(model, half=model.dtype != torch.float32), TrainConfig()
    way, verdict, wrong = update_verdict(model, backend, config.tokens_per_micro_batch, config.logprob_chunks, False)
    yield _compared("update = forward", f"trained {way}", verdict, wrong, "Train another model: nothing that can be set makes it agree.")
    head = "one matrix" if plain_head(model) is not None else "more than one matrix: logits are made whole, which takes more memory"
    before = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p]
    without_dropout(model)
    dropout = f"; its dropout (up to {max(before):g}) is off in training, for the sampler has none" if before else ""
    yield Finding("head", True, head + dropout)


def _memory(path: str, device: str) -> Finding:
    """What the defaults of training want, and what is here."""
    on_gpu = device.startswith("cuda")
    try:
        plan = plan_memory(TrainConfig(model_name_or_path=path), on_gpu, on_gpu)
    except (UserError, AttributeError, TypeError) as error:
        return Finding("memory", True, f"not estimated: {error}")
    page: Callable[[str], int] = os.sysconf
    there = (torch.cuda.get_device_properties(device).total_memory if on_gpu else page("SC_PAGE_SIZE") * page("SC_PHYS_PAGES")) / GIB
    said = f"training with the defaults wants about {plan.peak:.1f} GiB of {there:.0f}"
    return Finding("memory", plan.peak <= there, said, f"memfactory plan --model {path} --gpu {there:.0f} compares what helps")
