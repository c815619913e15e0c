"""From the setting `draft` to what guesses ahead."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import ConfigError
from ..models.loading import load_model, load_tokenizer
from ..models.served import ModelOptions, ServedModel
from .draft_model import ModelDrafter
from .draft_ngram import NgramDrafter
from .drafts import Drafter

NGRAM = "ngram"


def load_drafter(
    draft: str, path: Path, options: ModelOptions, model: ServedModel, num_blocks: int, block_size: int
) -> Drafter | None:
    """`draft`: "", "ngram", or a model's path. `path` is that of `model`, whose tokens are guessed.

    ConfigError where the two models do not share their tokens.
    """
    if not draft:
        return None
    if draft == NGRAM:
        return NgramDrafter()
    ours, theirs = load_tokenizer(path), load_tokenizer(Path(draft))
    same = ours.vocab_size == theirs.vocab_size and all(
        ours.token_bytes(token, skip_control=False) == theirs.token_bytes(token, skip_control=False)
        for token in range(ours.vocab_size)
    )
    if not same:
        raise ConfigError(
            f"the draft model {draft} has another tokenizer than {path}",
            hint='a draft model must be of the same family, or use `draft = "ngram"`',
        )
    return ModelDrafter(load_model(Path(draft), options), num_blocks, block_size, model.vocab_size)
