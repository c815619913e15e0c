"""What can never be served is refused with a reason, before anything is taken."""

from __future__ import annotations

import math
from typing import Any

import pytest

from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.adapter_book import AdapterBook
from callboard.actors.serve.intake import Intake, IntakeConfig, choice_seed
from callboard.actors.serve.sequence import Sequence
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import AdapterInfo, ChatMessage, Embed, Generate, Grammar, GrammarKind, Pooling, Score

CONFIG = IntakeConfig(model="smollm2", context_length=100, default_max_tokens=60, num_draft=3)
HELLO = (ChatMessage("user", "hello"),)
NAN, INF = math.nan, math.inf


@pytest.fixture
def intake(smollm2_tokenizer: Tokenizer) -> Intake:
    return Intake(CONFIG, smollm2_tokenizer, AdapterBook())


def admit(intake: Intake, **fields: Any) -> Sequence:
    (sequence,) = intake.generate(Generate(**fields))
    return sequence


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ""}, "needs either"),
        ({"prompt": "a", "messages": HELLO}, "not both"),
        ({"prompt": "a", "prompt_ids": (1,)}, "not both"),
        ({"prompt": "a", "temperature": NAN}, "temperature nan"),
        ({"prompt": "a", "temperature": INF}, "temperature inf"),
        ({"prompt": "a", "temperature": -0.1}, "temperature -0.1"),
        ({"prompt": "a", "top_p": 0.0}, "top_p"),
        ({"prompt": "a", "top_p": 1.1}, "top_p"),
        ({"prompt": "a", "top_p": NAN}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "min_p": -0.1}, "min_p"),
        ({"prompt": "a", "min_p": 1.1}, "min_p"),
        ({"prompt": "a", "min_p": NAN}, "min_p"),
        ({"prompt": "a", "repetition_penalty": 0.0}, "repetition_penalty"),
        ({"prompt": "a", "repetition_penalty": NAN}, "repetition_penalty"),
        ({"prompt": "a", "repetition_penalty": INF}, "repetition_penalty"),
        ({"prompt": "a", "presence_penalty": 2.5}, "presence_penalty"),
        ({"prompt": "a", "presence_penalty": NAN}, "presence_penalty"),
        ({"prompt": "a", "frequency_penalty": -2.5}, "frequency_penalty"),
        ({"prompt": "a", "frequency_penalty": INF}, "frequency_penalty"),
        ({"prompt": "a", "logit_bias": ((5, NAN),)}, "logit_bias of token 5"),
        ({"prompt": "a", "logit_bias": ((5, INF),)}, "logit_bias of token 5"),
        ({"prompt": "a", "logit_bias": ((49_152, 1.0),)}, "logit_bias has the token 49152"),
        ({"prompt": "a", "logit_bias": ((-1, 1.0),)}, "logit_bias has the token -1"),
        ({"prompt": "a", "logit_bias": ((5, 1.0), (5, 2.0))}, "names a token twice"),
        ({"prompt": "a", "logit_bias": tuple((i, 1.0) for i in range(1025))}, "1,025 entries"),
        ({"prompt": "a", "seed": 1 << 64}, "seed"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens 0"),
        ({"prompt": "a", "max_tokens": 100}, "context of 100"),
        ({"prompt": "a", "min_tokens": -1}, "min_tokens -1"),
        ({"prompt": "a", "min_tokens": 5, "max_tokens": 4}, "min_tokens 5"),
        ({"prompt": "a", "min_tokens": 100}, "min_tokens 100"),
        ({"prompt": "a", "n": 0}, "n 0"),
        ({"prompt": "a", "n": 65}, "n 65"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of 1"),
        ({"prompt": "a", "best_of": 65}, "best_of 65"),
        ({"prompt": "a", "logprobs": -1}, "logprobs -1"),
        ({"prompt": "a", "logprobs": 65}, "logprobs 65"),
        ({"prompt": "a", "prompt_logprobs": 65}, "prompt_logprobs 65"),
        ({"prompt": "1 " * 60}, "prompt has 120 tokens"),
        ({"prompt": "x" * 100_000}, "100,000 bytes"),
        ({"prompt_ids": (1, 49_152)}, "prompt_ids has the token 49152"),
        ({"prompt_ids": (-1,)}, "prompt_ids has the token -1"),
        ({"prompt_ids": (1,) * 100}, "prompt has 100 tokens"),
        ({"prompt": "a", "stop": ("",)}, "stop"),
        ({"prompt": "a", "stop": ("x",) * 17}, "stop"),
        ({"prompt": "a", "stop": ("x" * 1025,)}, "1,024 characters"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"messages": (ChatMessage("user", "\udc00"),)}, "surrogate"),
        ({"prompt": "a", "stop": ("\ud800",)}, "surrogate"),
        ({"prompt": "a", "session": "\ud800"}, "surrogate"),
        ({"prompt": "a", "session": "s" * 257}, "session has 257"),
        ({"prompt": "a", "session_ttl_s": -1.0}, "session_ttl_s"),
        ({"prompt": "a", "session_ttl_s": NAN}, "session_ttl_s"),
        ({"prompt": "a", "session_ttl_s": INF}, "session_ttl_s"),
        ({"prompt": "a", "client": "c" * 257}, "client has 257"),
        ({"prompt": "a", "priority": 1001}, "priority 1001"),
        ({"prompt": "a", "adapter": "none"}, "no adapter named 'none'"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.REGEX, "(")}, "grammar"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.JSON_SCHEMA, "{")}, "grammar|schema"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.JSON_SCHEMA, "false")}, "grammar|schema"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.CHOICE, "[]")}, "grammar|choice"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.EBNF, "root ::=")}, "grammar"),
        ({"prompt": "a", "grammar": Grammar(GrammarKind.REGEX, "\ud800")}, "surrogate"),
        ({"prompt": "\x06"}, "prompt is empty"),
        ({"prompt": "a", "model": "other"}, "serves 'smollm2'"),
    ],
)
def test_bad_requests_are_refused(intake: Intake, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestInvalid, match=reason):
        intake.generate(Generate(**fields))


def test_a_request_without_anything_is_refused(intake: Intake) -> None:
    with pytest.raises(RequestInvalid, match="needs either"):
        intake.generate(Generate())


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Embed(texts=()), "no texts"),
        (Embed(texts=("a", "")), "number 1 of the texts"),
        (Embed(texts=("a",) * 4097), "4,097 texts"),
        (Embed(texts=("\ud800",)), "surrogate"),
        (Embed(texts=("1 " * 60,)), "120 tokens"),
        (Embed(texts=("a",), adapter="none"), "no adapter"),
        (Embed(texts=("a",), model="other"), "serves"),
        (Embed(texts=("a",), priority=-1001), "priority"),
        (Score(continuations=()), "no continuations"),
        (Score(continuations=("a", ""), contexts=("b", "b")), "number 1 of the continuations"),
        (Score(continuations=("a", "b"), contexts=("b",)), "1 contexts for 2"),
        (Score(continuations=("a",)), "nothing stands before it"),
        (Score(continuations=(" 1" * 60,), contexts=("a",)), "tokens"),
        (Score(continuations=("a",), contexts=("\udc00",)), "surrogate"),
        (Score(continuations=("a b",), adapter="none"), "no adapter"),
    ],
)
def test_texts_that_cannot_be_looked_at_are_refused(intake: Intake, request_: Embed | Score, reason: str) -> None:
    with pytest.raises(RequestInvalid, match=reason):
        intake.embed(request_) if isinstance(request_, Embed) else intake.score(request_)


def test_a_request_without_a_length_gets_the_default_or_what_the_context_holds(intake: Intake) -> None:
    short = admit(intake, prompt="a")
    assert (short.num_prompt_tokens, short.max_tokens) == (1, 60)
    long = admit(intake, prompt="1" * 90)
    assert (long.num_prompt_tokens, long.max_tokens) == (90, 10)
    assert admit(intake, prompt="a", min_tokens=80).max_tokens == 80
    small = Intake(IntakeConfig("smollm2", 100, 60, cache_tokens=32), intake.tokenizer, AdapterBook())
    assert admit(small, prompt="1" * 10).max_tokens == 22
    assert admit(small, prompt="1" * 10, max_tokens=40).max_tokens == 40  # the planner refuses it


def test_messages_go_through_the_chat_template(intake: Intake) -> None:
    sequence = admit(intake, messages=HELLO)
    text = intake.tokenizer.decode(sequence.prompt_ids, skip_control=False)
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert sequence.stop_ids == intake.tokenizer.stop_ids


def test_a_prompt_may_be_ids(intake: Intake) -> None:
    assert admit(intake, prompt_ids=(5, 6)).prompt_ids == (5, 6)


def test_each_request_without_a_seed_has_its_own(intake: Intake) -> None:
    seeds = {admit(intake, prompt="a").sampling.seed for _ in range(10)}
    assert len(seeds) == 10
    assert admit(intake, prompt="a", seed=5).sampling.seed == 5


def test_each_of_several_answers_has_a_seed_that_follows_from_the_request(intake: Intake) -> None:
    several = intake.generate(Generate(prompt="a", seed=5, n=4))
    seeds = [sequence.sampling.seed for sequence in several]
    assert seeds == [choice_seed(5, index) for index in range(4)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 4
    assert not set(seeds) & {choice_seed(6, index) for index in range(4)}


def test_ignoring_the_end_of_turn_leaves_no_stop_tokens(intake: Intake) -> None:
    sequence = admit(intake, prompt="a", ignore_eos=True)
    assert not sequence.stop_ids
    assert not sequence.sampling.stop_ids


def test_the_best_are_picked_by_probabilities_that_nobody_asked_for(intake: Intake) -> None:
    assert {s.sampling.logprobs for s in intake.generate(Generate(prompt="a", best_of=3))} == {0}
    assert {s.sampling.logprobs for s in intake.generate(Generate(prompt="a", n=3, best_of=3))} == {-1}
    assert {s.sampling.logprobs for s in intake.generate(Generate(prompt="a", n=3, logprobs=2))} == {2}


def test_a_prompt_is_reported_on_once_and_computed_whole_for_that(intake: Intake) -> None:
    first, second = intake.generate(Generate(prompt="a b c", n=2, prompt_logprobs=1))
    assert (first.prompt_logprobs, first.reusable_tokens()) == (1, 0)
    assert (second.prompt_logprobs, second.reusable_tokens()) == (-1, 2)


def test_who_wants_no_guesses_gets_none(intake: Intake) -> None:
    assert admit(intake, prompt="a").num_draft == 3
    assert admit(intake, prompt="a", speculative=True).num_draft == 3
    assert admit(intake, prompt="a", speculative=False).num_draft == 0


def test_an_adapter_is_told_from_one_that_had_its_name(intake: Intake) -> None:
    namespaces = set()
    for _ in range(2):
        intake.adapters.add(AdapterInfo("a", "/a", 4, 10))
        namespaces.add(admit(intake, prompt="a", adapter="a").namespace)
        intake.adapters.drop("a")
    assert len(namespaces) == 2
    assert admit(intake, prompt="a").namespace not in namespaces
    assert admit(intake, prompt="a").namespace != admit(intake, prompt="a", deterministic=True).namespace


def test_a_continuation_is_scored_as_the_model_sees_it_after_its_context(intake: Intake) -> None:
    def scored(context: str, continuation: str) -> tuple[str, str]:
        (sequence,) = intake.score(Score(continuations=(continuation,), contexts=(context,)))
        ids = sequence.prompt_ids
        assert sequence.reusable_tokens() == sequence.first_scored - 1
        return tuple(
            intake.tokenizer.decode(part) for part in (ids[: sequence.first_scored], ids[sequence.first_scored :])
        )  # type: ignore[return-value]

    assert scored("The sky is", " blue today") == ("The sky is", " blue today")
    # A space at the end of the context belongs to the first word after it.
    assert scored("The sky is ", "blue today") == ("The sky is", " blue today")
    # Without a context scoring begins with the second token.
    assert scored("", "The sky is blue") == ("The", " sky is blue")


def test_a_start_token_is_not_scored_and_all_that_follows_it_is(intake: Intake) -> None:
    class Starting:
        """The same tokenizer with a start token, and one that ends a text."""

        def __getattr__(self, name: str) -> Any:
            return getattr(intake.tokenizer, name)

        def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
            ids = intake.tokenizer.encode(text)
            return [1, *ids, 2] if add_bos else ids

    starting = Intake(CONFIG, Starting(), AdapterBook())  # type: ignore[arg-type]
    for context, first in (("", 1), ("The sky is", 4)):
        (sequence,) = starting.score(Score(continuations=(" blue",), contexts=(context,)))
        assert sequence.first_scored == first
        assert sequence.prompt_ids[0] == 1
        assert sequence.prompt_ids[-1] != 2


def test_what_a_mean_needs_is_computed_and_what_the_last_state_does_not_need_is_not(intake: Intake) -> None:
    for pooling, reusable in ((Pooling.MEAN, 0), (Pooling.LAST, 2)):
        (sequence,) = intake.embed(Embed(texts=("a b c",), pooling=pooling))
        assert sequence.reusable_tokens() == reusable
