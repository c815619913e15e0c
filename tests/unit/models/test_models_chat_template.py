"""Chat templates render as transformers renders them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from callboard.actors.models.chat_template import ChatTemplate
from callboard.actors.models.tokenizer import Tokenizer
from callboard.runtime.errors import ModelDamaged, RequestInvalid

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b>there</b> & 'you'"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve 😀"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2\n"},
        {"role": "user", "content": "  3  "},
    ],
]
TEMPLATES = [
    # Blocks on lines of their own, trimmed; the whitespace before them stripped.
    "{% for m in messages %}\n    {% if loop.first %}\nfirst:\n    {% endif %}\n{{ m.role }}: {{ m['content'] }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\nassistant:\n{% endif %}",
    "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ bos_token }}{{ eos_token }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | trim }}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{% endgeneration %}{% endfor %}{% if tools %}T{% endif %}{% if documents is defined %}D{% endif %}",
]


def by_transformers(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=template, tools=None, documents=None, **variables
    )
    return rendered[0]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(template: str, messages: list[dict[str, Any]], prompt: bool) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = ChatTemplate(template, tokens).render(messages, add_generation_prompt=prompt)
    assert ours == by_transformers(template, messages, add_generation_prompt=prompt, **tokens)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_smollm2s_own_template_renders_as_in_transformers(
    smollm2_tokenizer: Tokenizer, messages: list[dict[str, Any]]
) -> None:
    template = smollm2_tokenizer.chat_template
    assert template is not None
    expected = by_transformers(template.text, messages, add_generation_prompt=True)
    assert template.render(messages) == expected
    assert expected.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2_tokenizer.encode_chat(messages) == smollm2_tokenizer.encode(expected)


def test_what_a_template_refuses_is_an_invalid_request() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestInvalid, match="roles must alternate"):
        template.render([])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(RequestInvalid):
        ChatTemplate(attack).render([{"role": "user", "content": "x"}])


def test_a_broken_template_is_damage() -> None:
    with pytest.raises(ModelDamaged, match="chat template"):
        ChatTemplate("{% if %}")
