"""Writes the byte tokenizer that these tests use, as a GGUF file without weights."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter

from callboard.actors.models.tokenizer import TokenType, byte_alphabet

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# It marks nothing: the assistant's place follows from what it writes of the first messages alone.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(path: Path, template: str | None = TEMPLATE) -> Path:
    """Ids: 0 to 2 the control tokens, then the bytes in GPT-2's order ("!" is 3), then "he", "ll", " t"."""
    tokens = [*CONTROL, *byte_alphabet().values(), "he", "ll", "Ġt"]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(["h e", "l l", "Ġ t"])
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
