"""What can never be served is refused with a reason, before anything is taken."""

from __future__ import annotations

from typing import Any

import pytest

from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.intake import IntakeConfig, admit
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import ChatMessage, Generate

CONFIG = IntakeConfig(model="smollm2", context_length=100, default_max_tokens=60)
HELLO = (ChatMessage("user", "hello"),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "needs either"),
        ({"prompt": ""}, "needs either"),
        ({"prompt": "a", "messages": HELLO}, "not both"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature nan"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature inf"),
        ({"prompt": "a", "temperature": -0.1}, "temperature -0.1"),
        ({"prompt": "a", "top_p": 0.0}, "top_p"),
        ({"prompt": "a", "top_p": 1.1}, "top_p"),
        ({"prompt": "a", "top_p": float("nan")}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens 0"),
        ({"prompt": "a", "max_tokens": 100}, "context of 100"),
        ({"prompt": "1 " * 60}, "prompt has 120 tokens"),
        ({"prompt": "x" * 100_000}, "100,000 bytes"),
        ({"prompt": "a", "stop": ("",)}, "stop"),
        ({"prompt": "a", "stop": ("x",) * 17}, "stop"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"messages": (ChatMessage("user", "\udc00"),)}, "surrogate"),
        ({"prompt": "a", "stop": ("\ud800",)}, "surrogate"),
        ({"prompt": "\x06"}, "prompt is empty"),
        ({"prompt": "a", "model": "other"}, "serves 'smollm2'"),
    ],
)
def test_bad_requests_are_refused(smollm2_tokenizer: Tokenizer, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestInvalid, match=reason):
        admit(Generate(**fields), smollm2_tokenizer, CONFIG)


def test_a_request_without_a_length_gets_the_default_or_what_the_context_holds(smollm2_tokenizer: Tokenizer) -> None:
    short = admit(Generate(prompt="a"), smollm2_tokenizer, CONFIG)
    assert (short.num_prompt_tokens, short.max_tokens) == (1, 60)
    long = admit(Generate(prompt="1" * 90), smollm2_tokenizer, CONFIG)
    assert (long.num_prompt_tokens, long.max_tokens) == (90, 10)


def test_messages_go_through_the_chat_template(smollm2_tokenizer: Tokenizer) -> None:
    sequence = admit(Generate(messages=HELLO), smollm2_tokenizer, CONFIG)
    text = smollm2_tokenizer.decode(sequence.prompt_ids, skip_control=False)
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert sequence.stop_ids == smollm2_tokenizer.stop_ids


def test_each_request_without_a_seed_has_its_own(smollm2_tokenizer: Tokenizer) -> None:
    seeds = {admit(Generate(prompt="a"), smollm2_tokenizer, CONFIG).sampling.seed for _ in range(10)}
    assert len(seeds) == 10
    assert admit(Generate(prompt="a", seed=5), smollm2_tokenizer, CONFIG).sampling.seed == 5


def test_ignoring_the_end_of_turn_leaves_no_stop_tokens(smollm2_tokenizer: Tokenizer) -> None:
    assert not admit(Generate(prompt="a", ignore_eos=True), smollm2_tokenizer, CONFIG).stop_ids
