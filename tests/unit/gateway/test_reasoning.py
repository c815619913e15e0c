"""Thoughts are told from the answer, wherever the pieces of it are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.gateway.reasoning import ReasoningSplitter, Split, split

ANSWERS = [
    # What the model writes, whether the prompt began a thought, the thought, the answer.
    ("<think>\nA greeting.\n</think>\n\nGood day.", False, "A greeting.", "Good day."),
    ("A greeting.\n</think>\n\nGood day.", False, "", "A greeting.\n</think>\n\nGood day."),
    ("A greeting.\n</think>\n\nGood day.", True, "A greeting.", "Good day."),
    ("\nA <b>greeting</b>, </thin\n</think>Good <think>day.", True, "A <b>greeting</b>, </thin", "Good <think>day."),
    ("<think>\nSaid again.\n</think>\n\nGood day.", True, "Said again.", "Good day."),
    ("A greeting that never", True, "A greeting that never", ""),
    ("<thin", True, "<thin", ""),
    ("<thin", False, "", "<thin"),
    ("</think>\n\nGood day.", True, "", "Good day."),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("text", "in_thought", "thought", "answer"), ANSWERS)
def test_a_thought_is_no_part_of_the_answer(text: str, in_thought: bool, thought: str, answer: str) -> None:
    assert split(text, in_thought) == Split(thought, answer)


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 60), max_size=8))
def test_pieces_add_up_to_what_the_whole_is_split_into(case: tuple[str, bool, str, str], cuts: list[int]) -> None:
    text, in_thought, thought, answer = case
    places = [0, *sorted(cuts), len(text)]
    splitter = ReasoningSplitter(in_thought)
    splits = [splitter.push(text[start:end]) for start, end in pairwise(places)]
    splits.append(splitter.finish())
    assert "".join(one.reasoning for one in splits) == thought
    assert "".join(one.content for one in splits) == answer
