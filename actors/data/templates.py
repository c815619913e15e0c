"""Chat templates for models that have none: ChatML, and the layout of Alpaca's prompts. Both mark what the assistant
says, so its place in a text is known.

What ends a turn is a variable, `turn_end`: it must be one token that the model can learn to stop at.
"""

from __future__ import annotations

from ...runtime.errors import ConfigError
from ..models.chat_template import ChatTemplate
from ..models.tokenizer import Tokenizer
from .errors import DataError

CHATML = """\
{%- macro calls(message) -%}
{%- for call in message.tool_calls or [] -%}
{{ '\\n' if message.content or not loop.first }}<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}
# Tools

Each line describes a function as JSON:
{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor -%}
A call is written as <tool_call>{"name": ..., "arguments": ...}</tool_call>.
{{- turn_end + '\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' -}}
{%- generation -%}
{{ message.content }}{{ calls(message) }}{{ turn_end }}
{%- endgeneration -%}
{{ '\\n' }}
{%- elif not (loop.first and tools and message.role == 'system') -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + turn_end + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '### Response:\\n' }}
{%- generation -%}
{{ message.content + turn_end }}
{%- endgeneration -%}
{{ '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- elif message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- else -%}
{{ raise_exception('there is no place for the role ' + message.role) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
"""

BUILT_IN = {"chatml": CHATML, "alpaca": ALPACA}


def choose_template(tokenizer: Tokenizer, name: str = "") -> ChatTemplate:
    """The template of this name; by default the model's own, and ChatML where it has none.

    Raises ConfigError for a name that is not known, DataError for a tokenizer that no turn can end with.
    """
    if name and name not in BUILT_IN:
        raise ConfigError(f"there is no template '{name}'", hint=f"choose one of {', '.join(BUILT_IN)}")
    if not name and tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return ChatTemplate(BUILT_IN[name or "chatml"], {"turn_end": _turn_end(tokenizer, name or "chatml")})


def _turn_end(tokenizer: Tokenizer, name: str) -> str:
    """ChatML's own mark where it is one token, else the one that ends a text."""
    mark = "<|im_end|>"
    if name == "chatml" and len(tokenizer.encode(mark, add_bos=False)) == 1:
        return mark
    if tokenizer.eos_id is None:
        raise DataError(
            "the tokenizer has no token that ends a text", hint="its tokenizer_config.json should name an eos_token"
        )
    return tokenizer.token_bytes(tokenizer.eos_id, skip_control=False).decode()
