"""Every format against files written by hand: what a record becomes, to the character, and what of it carries loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callboard.actors.data.data_file import Problem, open_data
from callboard.actors.data.formats import BY_NAME
from callboard.actors.data.rendering import Rendered, RenderedPair, Renderer
from callboard.actors.models.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path for path in GOLDEN.iterdir() if not path.name.endswith(".expected.json"))


def expected_of(path: Path) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{path.stem}.expected.json").read_text())


def check(found: Rendered, expected: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert found.text == "\n".join(expected["text"])
    assert found.loss_text == expected["loss_text"]
    assert tokenizer.decode(found.token_ids.tolist(), skip_control=False) == found.text
    with_loss = found.token_ids[found.loss_mask].tolist()
    assert tokenizer.decode(with_loss, skip_control=False) == "".join(expected["loss_text"])
    assert found.num_loss_tokens == expected.get("num_loss_tokens", found.num_loss_tokens)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_records_become_what_was_written_by_hand(path: Path, renderer: Renderer, tokenizer: Tokenizer) -> None:
    file = open_data(path)
    assert file.format.name == path.stem.replace("_", " ")
    samples = [sample for _, sample in file.samples()]
    expected = expected_of(path)
    assert len(samples) == len(expected)
    for sample, wanted in zip(samples, expected, strict=True):
        assert not isinstance(sample, Problem), sample
        found = renderer.render(sample)
        if isinstance(found, RenderedPair):
            check(found.chosen, wanted, tokenizer)
            check(found.rejected, wanted["rejected"], tokenizer)
        else:
            check(found, wanted, tokenizer)


def test_every_format_has_its_golden_file() -> None:
    assert {path.stem.replace("_", " ") for path in FILES} == set(BY_NAME)


def test_the_tokens_and_the_mask_of_a_sample_by_hand(renderer: Renderer, tmp_path: Path) -> None:
    """Ids of the byte tokenizer: 0 to 2 control, "!" (33) is 3, so a visible character's id is its code less 30; a
    line's end, byte 10 of those without a sign of their own, is 3 + 188 + 10; "he" is 259."""
    (tmp_path / "x").write_text('{"instruction": "he?", "output": "ok"}')
    ((_, sample),) = open_data(tmp_path / "x").samples()
    assert not isinstance(sample, Problem)
    found = renderer.render(sample)
    assert isinstance(found, Rendered)
    end = 201
    user, assistant = [ord(c) - 30 for c in "user"], [ord(c) - 30 for c in "assistant"]
    asked = [1, *user, end, 259, ord("?") - 30, 2, end]
    assert found.token_ids.tolist() == [*asked, 1, *assistant, end, ord("o") - 30, ord("k") - 30, 2, end]
    assert found.loss_mask.tolist() == [False] * len(asked) + [False] * 11 + [True] * 3 + [False]


SMOLLM2 = """\
<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
Add.
2 and 3<|im_end|>
<|im_start|>assistant
5 é😀<|im_end|>
"""


def test_smollm2s_own_template_and_tokens(smollm2_path: Path, tmp_path: Path) -> None:
    from callboard.actors.models.tokenizer_loading import load_tokenizer

    tokenizer = load_tokenizer(smollm2_path)
    (tmp_path / "x").write_text('[{"instruction": "Add.", "input": "2 and 3", "output": "5 é😀"}]')
    ((_, sample),) = open_data(tmp_path / "x").samples()
    assert not isinstance(sample, Problem)
    found = Renderer(tokenizer).render(sample)
    assert isinstance(found, Rendered)
    assert (found.text, found.loss_text) == (SMOLLM2, ["5 é😀<|im_end|>"])
    # The prompt's tokens are those that a server encodes, so what is learnt is what follows them.
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Add.\n2 and 3"}])
    assert found.token_ids[: len(prompt)].tolist() == prompt
    assert found.loss_mask.tolist() == [False] * len(prompt) + [True] * (found.num_tokens - len(prompt) - 1) + [False]
