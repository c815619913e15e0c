"""Renders a model's chat template as transformers' `apply_chat_template` does, without transformers.

Templates come with models from anywhere, so they run in jinja2's immutable sandbox and see plain data only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...runtime.errors import ModelDamaged, RequestInvalid

# Marks around what is to be found again in a rendered text. Unicode keeps these two for a program's own use: no text
# that is exchanged has them.
START, END = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"([{START}{END}])")


class ChatTemplate:
    """A compiled template. `special_tokens` (`bos_token`, `eos_token`, ...) are variables that it may use.

    Raises `ModelDamaged` if the text is no valid template.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.text = text
        self.special_tokens: Mapping[str, str] = dict(special_tokens or {})
        try:
            self._template = _environment(_GenerationBlock).from_string(text)
            self._marking = _environment(_MarkedGenerationBlock).from_string(text)
        except jinja2.TemplateError as error:
            raise ModelDamaged(f"the model's chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as one prompt; `RequestInvalid` where the template refuses it (an unknown role, say)."""
        return self._render(self._template, messages, tools, add_generation_prompt)

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation without a prompt for more, and the places in it, in characters, that the template writes
        inside `{% generation %}` blocks: what the assistant says. Empty for a template without such blocks.

        `RequestInvalid` also where a block's marks would change what the template writes around them.
        """
        text = self.render(messages, tools=tools, add_generation_prompt=False)
        if "endgeneration" not in self.text:
            return text, []
        if START in text or END in text:
            raise RequestInvalid("the messages hold U+FDD0 or U+FDD1, which stand for no character")
        bare, spans = take_marks(self._render(self._marking, messages, tools, False))
        if bare != text:
            raise RequestInvalid("the chat template changes what its own generation blocks wrote")
        return text, spans

    def _render(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        try:
            return template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError, ValueError) as error:
            raise RequestInvalid(f"the model's chat template refuses these messages: {error}") from error


def take_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """`text` without its marks, and where the stretches between a START and its END lie in it.

    Raises RequestInvalid for marks that do not pair up.
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length, opened = 0, -1
    for piece in _MARKS.split(text):
        if piece == START and opened < 0:
            opened = length
        elif piece == END and opened >= 0:
            spans.append((opened, length))
            opened = -1
        elif piece in (START, END):
            raise RequestInvalid("the chat template has generation blocks inside one another")
        else:
            pieces.append(piece)
            length += len(piece)
    if opened >= 0:
        raise RequestInvalid("the chat template cuts off a generation block")
    return "".join(pieces), spans


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says, for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (so jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _MarkedGenerationBlock(Extension):
    """The same block, with a mark before and after what it renders."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (START, END))
        return [before, *body, after]


def _environment(generation: type[Extension]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which no model has seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
