"""A prompt shows no other date tomorrow, and a thought is none of the answer, by whatever marks a model's family begins and ends it."""

from __future__ import annotations

import copy
from datetime import datetime
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError
from memfactory.common.parsing import strip_thinking
from memfactory.common.types import Messages, Sampling, Turn, View
from memfactory.engines.base import run
from memfactory.engines.chat import LocalChat, Models
from memfactory.engines.scripted import ScriptedChat, ScriptedEngine
from memfactory.engines.template import KNOWN, canonical, rendered, thoughts_of, today

ASKED: Messages = [{"role": "user", "content": "city alice ?"}]
OWN = ("<my:reasoning>", "</my:reasoning>")
FRAME = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"


def tokenizer_with(tiny: PreTrainedTokenizerFast, tokens: list[str], special: bool, template: str = "") -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny)
    tokenizer.add_tokens([token for token in dict.fromkeys(tokens) if token], special_tokens=special)
    tokenizer.chat_template += template
    return tokenizer


def said(tokenizer: PreTrainedTokenizerFast, text: str) -> Turn:
    """What becomes of a response that is written so and ends by itself."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    engine = ScriptedEngine(lambda prompt, sampling: [*ids, tokenizer.eos_token_id], frozenset({tokenizer.eos_token_id}))
    return run(LocalChat(tokenizer, engine).chat(ASKED, "memory", Sampling(60)))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("begin", "end"), [*KNOWN, OWN])
def test_no_familys_thought_is_part_of_the_answer(tiny_tokenizer: PreTrainedTokenizerFast, begin: str, end: str, special: bool) -> None:
    named = f"{{#- {begin} {end} #}}"
    tokenizer = tokenizer_with(tiny_tokenizer, [begin, end], special, named)
    for text, visible in (
        (f"{begin} city bob rome . {end} city alice paris .", "city alice paris ."),
        (f"{begin} city bob rome .", None),
        (f"city alice paris . {begin} pet", None),
        (f"city bob rome . {end} city alice paris .", "city alice paris ."),
        (f"{begin}{end}", ""),
        ("city alice paris .", "city alice paris ."),
    ):
        turn = said(tokenizer, text)
        assert strip_thinking(turn.text) == visible, text
        assert turn.response_ids[-1] == tokenizer.eos_token_id, "what is trained on is what was sampled"
    opened = tokenizer_with(tiny_tokenizer, [begin, end], special, f"{{%- if add_generation_prompt %}}{{{{- '{begin}\n' }}}}{{%- endif %}}")
    assert strip_thinking(said(opened, "city bob rome .").text) is None
    assert strip_thinking(said(opened, f"city bob rome . {end} city alice paris .").text) == "city alice paris ."
    shut = tokenizer_with(
        tiny_tokenizer, [begin, end], special, f"{{%- if add_generation_prompt %}}{{{{- '{begin}{end}' }}}}{{%- endif %}}"
    )
    assert strip_thinking(said(shut, "city alice paris .").text) == "city alice paris ."


def test_only_harmonys_final_channel_is_an_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    words = tokenizer_with(tiny_tokenizer, ["analysis", "assistant", "final", "commentary"], False)
    tokenizer = tokenizer_with(words, FRAME, True, "{#- <|channel|> #}")
    for text, visible in (
        (f"{ANALYSIS}city bob rome .{FINAL}city alice paris .<|return|>", "city alice paris ."),
        (f"{ANALYSIS}city bob rome .", None),
        (f"{ANALYSIS}city bob rome .<|end|>", None),
        (f"{ANALYSIS}city bob rome .<|end|><|start|>assistant<|channel|>", None),
        (f"{ANALYSIS}pet<|end|><|start|>assistant<|channel|>commentary<|message|>pet{FINAL}city alice paris .", "city alice paris ."),
        ("<|channel|>final<|message|>city alice paris .<|return|>", "city alice paris ."),
    ):
        assert strip_thinking(said(tokenizer, text).text) == visible, text


def test_a_tokenizer_without_marks_decodes_as_before(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    thoughts = thoughts_of(tiny_tokenizer, str(tiny_tokenizer.chat_template))
    assert not thoughts.special and not thoughts.named and not thoughts.opened
    ids = tiny_tokenizer("city alice paris .").input_ids
    assert thoughts.text(tiny_tokenizer, ids) == tiny_tokenizer.decode(ids, skip_special_tokens=True)
    assert canonical("[think] so it is", thoughts.marks) == "[think] so it is"


def test_a_budget_spent_in_a_hidden_thought_keeps_the_memory(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    memories = iter(["city alice paris .", "<think>", "[/THINK] pet bob dog ."])
    chat = ScriptedChat(lambda messages, stage: canonical(next(memories)) if stage == "memory" else messages[0]["content"])
    (trajectory,) = MemoryAgent(tiny_tokenizer, "cpu", chunk_size=4).inference(
        [View("x", ("?",), context="city alice paris . city bob rome . pet bob dog .")], Models({"policy": chat})
    )
    assert [memory for _, memory in trajectory.steps] == ["city alice paris .", "city alice paris .", "pet bob dog ."]
    assert trajectory.report["unclosed_thought"] == 1


DATED = (
    "\n  {% set said = strftime_now('%d %b %Y') if strftime_now is defined else 'never' %}{{ said }}|"
    "{{ strftime_now('%-d %B %y, %Y-%m-%d') }}|"
)


def test_a_template_with_todays_date_is_told_a_fixed_one(tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = DATED + tokenizer.chat_template
    monkeypatch.setattr("memfactory.engines.template.load_settings", lambda: SimpleNamespace(memfactory_today=given[-1]))
    given: list[str | None] = []
    for date, shown in ((None, "01 Jan 2025|1 January 25, 2025-01-01|"), ("2031-12-24", "24 Dec 2031|24 December 31, 2031-12-24|")):
        given.append(date)
        today.cache_clear()
        real = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
        wanted = real.replace(f"{datetime.now():%d %b %Y|%-d %B %y, %Y-%m-%d|}", shown)
        encoded = LocalChat(tokenizer, ScriptedEngine(lambda *_: ())).encode(ASKED)
        assert shown in wanted and encoded == tuple(tokenizer(wanted, add_special_tokens=False).input_ids), "nothing but the date is other"
        assert shown in (rendered(tokenizer) or "")
    given.append("tomorrow")
    today.cache_clear()
    with pytest.raises(ConfigError, match="MEMFACTORY_TODAY is 'tomorrow'"):
        rendered(tokenizer)
    monkeypatch.undo()
    today.cache_clear()
    assert rendered(None) is None and rendered(tiny_tokenizer) is not None
