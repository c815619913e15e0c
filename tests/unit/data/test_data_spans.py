"""The assistant's part of a conversation is found exactly, whatever the template does, or the sample is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from callboard.actors.data.errors import DataError, NoSpans
from callboard.actors.data.rendering import Rendered, Renderer
from callboard.actors.data.samples import Conversation, Document, Role, ToolCall, Turn, assistant, system, tool, user
from callboard.actors.models.chat_template import START, ChatTemplate
from callboard.actors.models.tokenizer import Tokenizer, TokenType
from callboard.actors.models.tokenizer_gguf import SentencePieceTokenizer
from callboard.runtime.errors import ConfigError, RequestInvalid

Make = Callable[..., Renderer]

# What the assistant says is also said by others, and holds what templates write: searching for it would go wrong.
TRICKY = Conversation(
    (user("a"), assistant("a"), user("assistant\na"), assistant("<|im_start|>user\na", loss=True), user("a")),
)

GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
# As Llama 2's: no word says whose turn it is, the content is trimmed, and a turn ends with the end of a text.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' <|endoftext|>' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
# As Qwen 3's: only the last turn has a place for its thoughts, so what it writes of the beginning changes later.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The prompt makes the model think aloud, and no answer in a conversation begins so.
PROMPT_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def rendered(renderer: Renderer, sample: Conversation | Document) -> Rendered:
    found = renderer.render(sample)
    assert isinstance(found, Rendered)
    kept = found.token_ids[found.loss_mask].tolist()
    assert renderer.tokenizer.decode(kept, skip_control=False) == "".join(found.loss_text)
    return found


def test_by_the_beginnings_of_the_text(make_renderer: Make) -> None:
    found = rendered(make_renderer(), TRICKY)
    assert found.loss_text == ["a<|im_end|>", "<|im_start|>user\na<|im_end|>"]
    first = found.text.index("assistant\n") + len("assistant\n")
    assert found.loss_spans[0] == (first, first + len("a<|im_end|>"))


def test_by_the_templates_own_blocks(make_renderer: Make) -> None:
    """They end before the token that ends the turn, which is to be learnt too."""
    renderer = make_renderer(GENERATION)
    assert rendered(renderer, TRICKY).loss_text == ["a<|im_end|>", "<|im_start|>user\na<|im_end|>"]
    quiet = Conversation((user("q"), assistant("a", loss=False), user("q"), assistant("b")))
    assert rendered(renderer, quiet).loss_text == ["b<|im_end|>"]


def test_blocks_in_a_macro_count_as_well(make_renderer: Make) -> None:
    macro = (
        "{% macro say(m) %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ say(m) }}{% else %}U:{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    assert rendered(make_renderer(macro), TRICKY).loss_text == ["a<|im_end|>", "<|im_start|>user\na<|im_end|>"]


def test_blocks_for_several_parts_of_a_turn(make_renderer: Make) -> None:
    parts = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content[:1] }}{% endgeneration %}-"
        "{% generation %}{{ m.content[1:] }}<|im_end|>{% endgeneration %}{% else %}U:{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    renderer = make_renderer(parts)
    talk = (user("q"), assistant("ab"), user("q"), assistant("cd"))
    assert rendered(renderer, Conversation(talk)).loss_text == ["a", "b<|im_end|>", "c", "d<|im_end|>"]
    # Which block is which turn's is no longer plain, so the beginnings decide; this template has no prompt.
    quiet = Conversation((user("q"), assistant("ab", loss=False), user("q"), assistant("cd")))
    assert rendered(renderer, quiet).loss_text == ["A:c-d<|im_end|>"]


def test_a_template_that_trims_and_alternates(make_renderer: Make) -> None:
    found = rendered(
        make_renderer(BRACKETS), Conversation((user(" hi "), assistant("  yo\n"), user("x"), assistant("y")))
    )
    assert found.text == "[INST] hi [/INST] yo <|endoftext|>[INST] x [/INST] y <|endoftext|>"
    assert found.loss_text == [" yo <|endoftext|>", " y <|endoftext|>"]


def test_a_template_that_writes_earlier_turns_otherwise(make_renderer: Make) -> None:
    found = rendered(make_renderer(THINKING), Conversation((user("a"), assistant(" a "), user("b"), assistant("c"))))
    assert found.loss_text == ["a<|im_end|>", "<think>\n\n</think>\n\nc<|im_end|>"]
    assert found.loss_spans[0][0] == len("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")


def test_marks_that_change_the_text_prove_nothing(make_renderer: Make) -> None:
    """The template writes how long each content is, and marks around it make it longer."""
    counting = THINKING.replace("{{ m.content | trim }}", "{{ m.content | length }} {{ m.content }}")
    with pytest.raises(NoSpans, match="message 2"):
        make_renderer(counting).render(Conversation((user("a"), assistant("b"), user("c"), assistant("d"))))


def test_a_template_whose_prompt_is_no_beginning(make_renderer: Make) -> None:
    assert rendered(make_renderer(PROMPT_THINKS), TRICKY).loss_text == [
        "a<|im_end|>",
        "<|im_start|>user\na<|im_end|>",
    ]


def test_a_conversation_that_the_assistant_begins(make_renderer: Make) -> None:
    needs_first = "{% if messages[0].role %}{% endif %}" + THINKING
    found = rendered(make_renderer(needs_first), Conversation((assistant("Welcome"), user("x"))))
    assert found.loss_text == ["Welcome<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content[:1] }}{% endfor %}",
        "{{ messages | length }}",
    ],
)
def test_a_template_without_the_assistants_spans_is_refused(make_renderer: Make, template: str) -> None:
    with pytest.raises(NoSpans, match=r"message 2 .of the assistant.") as caught:
        make_renderer(template).render(Conversation((user("a"), assistant("b"), user("c"))))
    assert "--template" in caught.value.hint


def test_what_a_template_does_to_its_blocks_is_noticed(make_renderer: Make) -> None:
    trims = (
        "{% for m in messages %}{% set x %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
        "[{{ x | trim }}]{% endfor %}"
    )
    with pytest.raises(RequestInvalid, match="changes what its own generation blocks wrote"):
        make_renderer(trims).render(Conversation((assistant(" a "),)))
    with pytest.raises(RequestInvalid, match="U\\+FDD0"):
        make_renderer(GENERATION).render(Conversation((user(START), assistant("a"))))


CALLING = Conversation(
    (
        system("S"),
        user("q"),
        Turn(Role.ASSISTANT, "", loss=True, tool_calls=(ToolCall("f", {"a": "ü"}, "i1"),)),
        tool("42"),
        assistant("It is 42"),
    ),
    tools=({"type": "function", "function": {"name": "f"}},),
)
KNOWS_CALLS = (
    "{% if tools %}T{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ ARGUMENTS }}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("arguments", ["c.function.arguments | tojson", "'' + c.function.arguments"])
def test_a_template_writes_calls_and_tools_its_own_way(make_renderer: Make, arguments: str) -> None:
    found = rendered(make_renderer(KNOWS_CALLS.replace("ARGUMENTS", arguments)), CALLING)
    assert found.text.startswith('T[{"type": "function", "function": {"name": "f"}}]<|im_start|>system\nS<|im_end|>')
    assert found.loss_text == ['f({"a": "ü"})<|im_end|>', "It is 42<|im_end|>"]


def test_what_a_template_cannot_write_is_written_as_text(make_renderer: Make) -> None:
    """Neither system, nor tools, nor their answers: nothing of it is lost in silence."""
    found = rendered(make_renderer(BRACKETS), CALLING)
    assert found.text == (
        '[INST] S\n\n# Tools\n{"type": "function", "function": {"name": "f"}}\n\nq [/INST]'
        ' <tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call> <|endoftext|>'
        "[INST] <tool_response>\n42\n</tool_response> [/INST] It is 42 <|endoftext|>"
    )
    assert found.loss_text == [
        ' <tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call> <|endoftext|>',
        " It is 42 <|endoftext|>",
    ]


def test_models_without_a_template_get_chatml(make_renderer: Make) -> None:
    found = rendered(make_renderer(None), CALLING)
    assert found.loss_text == [
        '<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call><|im_end|>',
        "It is 42<|im_end|>",
    ]
    assert found.text.startswith("<|im_start|>system\nS\n\n# Tools\n")
    assert found.text.endswith("<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\nIt is 42<|im_end|>\n")
    assert rendered(make_renderer(None), TRICKY).text == make_renderer().template.render(
        [{"role": turn.role.value, "content": turn.content} for turn in TRICKY.turns], add_generation_prompt=False
    )


def test_alpacas_layout_on_request(make_renderer: Make) -> None:
    found = rendered(make_renderer(name="alpaca"), Conversation((system("S"), user("q"), assistant("a"))))
    assert found.text == "S\n\n### Instruction:\nq\n\n### Response:\na<|endoftext|>\n\n"
    assert found.loss_text == ["a<|endoftext|>"]
    with pytest.raises(ConfigError, match="no template 'vicuna'"):
        _ = make_renderer(name="vicuna").template


def test_a_token_on_the_border_carries_loss(make_renderer: Make) -> None:
    """The token " t": its space is the template's, its letter the assistant's."""
    template = (
        "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}a: {% endif %}"
    )
    renderer = make_renderer(template)
    found = renderer.render(Conversation((user("q"), assistant("two"))))
    assert isinstance(found, Rendered)
    assert found.loss_text == ["two"]
    assert renderer.tokenizer.decode(found.token_ids[found.loss_mask].tolist()) == " two"


def test_a_document_ends_with_the_end_of_a_text(make_renderer: Make) -> None:
    renderer = make_renderer()
    assert rendered(renderer, Document("ab")).token_ids.tolist() == [ord("a") - 30, ord("b") - 30, 0]
    assert rendered(renderer, Document("ab", ends=False)).text == "ab"
    renderer.tokenizer.eos_id = None
    with pytest.raises(DataError, match="no token that ends a text"):
        renderer.render(Document("ab"))


def sentencepiece() -> Tokenizer:
    """LLaMA 2's kind: a space is put before each stretch of text, and what has no token is spelled in bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abhiqy[]INST/", "hi", "▁hi"]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (len(tokens) - len(kinds))
    template = BRACKETS.replace("{{ '[INST]", "{{ bos_token + '[INST]").replace("<|endoftext|>", "</s>")
    return SentencePieceTokenizer(
        tokens,
        [-float(at) for at in range(len(tokens))],
        kinds,
        stop_ids=frozenset({2}),
        eos_id=2,
        bos_id=1,
        add_bos=True,
        chat_template=ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}),
    )


def test_offsets_hold_where_the_tokenizer_changes_the_text() -> None:
    renderer = Renderer(sentencepiece())
    found = renderer.render(Conversation((user("hi"), assistant("hé 😀i"), user("q"), assistant("y"))))
    assert isinstance(found, Rendered)
    assert found.text == "<s>[INST] hi [/INST] hé 😀i </s><s>[INST] q [/INST] y </s>"
    assert found.loss_text == [" hé 😀i </s>", " y </s>"]
    bytes_of = renderer.tokenizer.token_bytes
    kept = [bytes_of(token, skip_control=False) for token in found.token_ids[found.loss_mask].tolist()]
    assert b"".join(kept).decode() == " hé 😀i </s> y </s>"
    assert found.offsets[-1].tolist() == [len(found.text) - 4, len(found.text)]


def test_a_document_stands_between_the_tokens_that_the_model_expects() -> None:
    found = Renderer(sentencepiece()).render(Document("hi"))
    assert isinstance(found, Rendered)
    assert (found.text, found.loss_text) == ("<s>hi</s>", ["hi</s>"])
    assert (found.token_ids[0], found.token_ids[-1]) == (1, 2)
    assert found.loss_mask.tolist() == [False] + [True] * (found.num_tokens - 1)
    assert found.offsets.tolist()[-1] == [5, 9]
