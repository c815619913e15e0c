"""The page on training data shows each format as it is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from callboard.actors.data.data_file import Problem, open_data
from callboard.actors.data.formats import FORMATS

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
SHOWN = dict(re.findall(r"^### ([\w-]+)\n.*?^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_every_format_is_shown() -> None:
    assert set(SHOWN) == {format.name for format in FORMATS}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_is_of_its_format(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text(SHOWN[name])
    file = open_data(tmp_path / "x")
    assert file.format.name == name
    samples = [sample for _, sample in file.samples()]
    assert len(samples) == 1
    assert not isinstance(samples[0], Problem), samples[0]
