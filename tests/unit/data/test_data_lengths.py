"""Samples longer than the context: what is kept of them, and that it is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.data.lengths import Counts, TooLong, fit
from callboard.actors.data.rendering import Rendered, RenderedPair, Renderer
from callboard.actors.data.samples import Conversation, Document, Preference, assistant, user


def sequence(renderer: Renderer, sample: Document | Conversation) -> Rendered:
    found = renderer.render(sample)
    assert isinstance(found, Rendered)
    return found


def test_what_does_not_fit_is_cut_off(renderer: Renderer) -> None:
    counts = Counts()
    whole = sequence(renderer, Conversation((user("q"), assistant("abcdef"))))
    (cut,) = fit(whole, whole.num_tokens - 4, TooLong.TRUNCATE, counts)
    assert cut.num_tokens == whole.num_tokens - 4
    assert cut.text == whole.text.removesuffix("ef<|im_end|>\n")
    assert cut.loss_text == ["abcd"]
    assert cut.num_loss_tokens == 4
    assert (counts.num_truncated, counts.num_dropped) == (1, 0)
    assert fit(whole, 5, TooLong.TRUNCATE, counts) == []
    assert (counts.num_truncated, counts.num_dropped) == (1, 1), "nothing to learn was left"


def test_too_long_samples_are_dropped(renderer: Renderer) -> None:
    counts = Counts()
    whole = sequence(renderer, Document("abc"))
    assert fit(whole, 3, TooLong.DROP, counts) == []
    assert fit(whole, 4, TooLong.DROP, counts) == [whole]
    assert fit(whole, 0, TooLong.DROP, counts) == [whole]
    assert counts.num_dropped == 1


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60), st.integers(2, 20))
def test_pieces_of_a_split_predict_every_token_once(renderer: Renderer, text: str, max_tokens: int) -> None:
    counts = Counts()
    whole = sequence(renderer, Document(text))
    pieces = fit(whole, max_tokens, TooLong.SPLIT, counts)
    assert counts.num_split == (whole.num_tokens > max_tokens)
    assert all(piece.num_tokens <= max_tokens for piece in pieces)
    first, *rest = pieces
    joined = first.token_ids.tolist() + [token for piece in rest for token in piece.token_ids[1:].tolist()]
    assert joined == whole.token_ids.tolist()
    assert first.loss_mask.all()
    for before, piece in zip(pieces, rest, strict=False):
        assert piece.token_ids[0] == before.token_ids[-1]
        assert piece.loss_mask.tolist() == [False] + [True] * (piece.num_tokens - 1)


def test_pieces_of_a_conversation_without_loss_are_left_out(renderer: Renderer) -> None:
    counts = Counts()
    whole = sequence(renderer, Conversation((user("x" * 50), assistant("abc"))))
    pieces = fit(whole, 16, TooLong.SPLIT, counts)
    assert len(pieces) < whole.num_tokens // 15
    assert "".join(text for piece in pieces for text in piece.loss_text) == "abc<|im_end|>"
    assert (counts.num_split, counts.num_dropped) == (1, 0)


def test_a_pair_is_kept_or_left_out_as_one(renderer: Renderer) -> None:
    pair = renderer.render(Preference((user("q"),), (assistant("a"),), (assistant("a" * 30),)))
    assert isinstance(pair, RenderedPair)
    limit = pair.chosen.num_tokens + 5
    for too_long, kept, counted in (
        (TooLong.TRUNCATE, 2, (1, 0)),
        (TooLong.DROP, 0, (0, 1)),
        (TooLong.SPLIT, 0, (0, 1)),
    ):
        counts = Counts()
        both = fit(pair, limit, too_long, counts)
        assert len(both) == kept
        assert (counts.num_truncated, counts.num_dropped) == counted
        assert all(one.num_tokens <= limit for one in both)
    assert fit(pair, 0, TooLong.DROP, Counts()) == [pair.chosen, pair.rejected]
