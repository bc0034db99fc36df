"""Servers' own words: which refusals are for good, and which parameter of a request they do not take."""

from __future__ import annotations

import pytest

from memfactory.common.refusals import for_good, refused_parameter, too_long, without

SENT = ("temperature", "top_p", "seed", "max_tokens", "logprobs")


@pytest.mark.parametrize(
    ("param", "found", "said"),
    [
        # OpenAI
        ("max_tokens", "max_tokens",
         "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
        ("temperature", "temperature",
         "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."),
        # Azure, Mistral, Gemini, Groq, Anthropic
        (None, "seed", "Unrecognized request argument supplied: seed"),
        (None, "seed", '{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}'),
        (None, "seed", 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
        (None, "logprobs", "'logprobs': property 'logprobs' is unsupported"),
        (None, "top_p", "`temperature` and `top_p` cannot both be specified for this model. Please use only one."),
        (None, "temperature", "temperature: `temperature` is deprecated for this model."),
        # What is wrong with a value, or with the prompt, is no reason to leave a parameter out.
        ("max_tokens", None, "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, you provided 8192."),
        ("max_tokens", None, "This model's maximum context length is 512 tokens; 'max_tokens' 500 is not supported with it"),
        (None, None, "temperature must be non-negative, got -1.0"),
        (None, None, "System role not supported"),
        ("stop_seed", None, "Unsupported parameter: 'stop_seed' is not supported"),
        ({"not": "a name"}, None, "Unsupported parameter"),
    ],
)  # fmt: skip
def test_the_parameter_that_is_not_taken_is_found_in_the_servers_words(param: object, found: str | None, said: str) -> None:
    assert refused_parameter(said, param, SENT) == found


def test_for_good_or_for_now() -> None:
    assert [status for status in range(400, 600) if not for_good(status)] == [408, 409, 425, 429, *range(500, 600)]
    assert for_good(429, '{"error": {"code": "insufficient_quota"}}') and not for_good(429, "Rate limit reached for requests")
    assert too_long("maximum context length is 8192 tokens") and not too_long("max_tokens is unsupported")


def test_a_request_without_what_was_refused() -> None:
    assert without({"max_tokens": 3, "seed": 1, "top_p": 0.5}, {"max_tokens", "seed"}) == {"max_completion_tokens": 3, "top_p": 0.5}
