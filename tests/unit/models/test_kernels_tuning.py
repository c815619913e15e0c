"""Which launch configuration is taken: searched for once, then known, in this process and in the next."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import pytest

from callboard.kernels.cache import cache_folder
from callboard.kernels.gpu.tuning import Book, Config, Run, sources_digest

CONFIGS = (Config({"BLOCK": 64}), Config({"BLOCK": 128}, num_warps=8), Config({"BLOCK": 256}, num_stages=1))


class Card:
    """Stands for a card whose times are given; None: the configuration does not fit it."""

    def __init__(self, *times: float | None) -> None:
        self.times = times
        self.num_searches = 0

    def measure(self, configs: Sequence[Config], run: Run) -> Sequence[float | None]:
        self.num_searches += 1
        for config in configs:
            run(config)
        return self.times


def test_the_fastest_that_fits_is_taken_and_searched_for_once_for_each_key(tmp_path: Path) -> None:
    card, ran = Card(2.0, None, 1.0), []
    book = Book(tmp_path / "card.json", card.measure)
    assert [book.pick("gemm", (1, 64), CONFIGS, ran.append) for _ in range(3)] == [CONFIGS[2]] * 3
    assert card.num_searches == 1
    assert ran == list(CONFIGS)
    book.pick("gemm", (2, 64), CONFIGS, ran.append)
    book.pick("norm", (1, 64), CONFIGS, ran.append)
    assert card.num_searches == 3


def test_a_warm_start_searches_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tuning" / "card.json"
    Book(file, Card(3.0, 1.0, 2.0).measure).pick("gemm", (1, True, "half"), CONFIGS, lambda config: None)
    card = Card(1.0, 2.0, 3.0)
    assert Book(file, card.measure).pick("gemm", (1, True, "half"), CONFIGS, lambda config: None) == CONFIGS[1]
    assert card.num_searches == 0
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == ["card.json"]


def test_what_is_no_longer_offered_is_searched_for_again(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    Book(file, Card(3.0, 1.0, 2.0).measure).pick("gemm", (), CONFIGS, lambda config: None)
    card = Card(2.0, 1.0)
    assert Book(file, card.measure).pick("gemm", (), [CONFIGS[0], CONFIGS[2]], lambda config: None) == CONFIGS[2]
    assert card.num_searches == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"[\\"gemm\\"]": 3}'])
def test_a_damaged_file_is_written_anew(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "card.json"
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        Book(file, Card(1.0, 2.0, 3.0).measure).pick("gemm", (), CONFIGS, lambda config: None)
    assert ("cannot be read" in caplog.text) is (content != '{"[\\"gemm\\"]": 3}')
    card = Card(9.0, 9.0, 9.0)
    assert Book(file, card.measure).pick("gemm", (), CONFIGS, lambda config: None) == CONFIGS[0]
    assert card.num_searches == 0


def test_without_a_folder_to_write_the_search_still_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    card = Card(2.0, 1.0, 3.0)
    book = Book(tmp_path / "file" / "card.json", card.measure)
    with caplog.at_level(logging.WARNING):
        assert [book.pick("gemm", (), CONFIGS, lambda config: None) for _ in range(2)] == [CONFIGS[1]] * 2
    assert card.num_searches == 1
    assert "cannot be written" in caplog.text


ADD = """
import sys
from pathlib import Path
from callboard.kernels.gpu.tuning import Book, Config

configs = (Config({"BLOCK": 1}), Config({"BLOCK": 2}))
book = Book(Path(sys.argv[1]), lambda configs, run: [2.0, 1.0])
for i in range(40):
    book.pick(sys.argv[2], (i,), configs, lambda config: None)
"""


def test_processes_that_search_at_once_keep_what_each_has_found(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    command = [sys.executable, "-c", ADD, str(file)]
    processes = [subprocess.Popen([*command, name], env={**os.environ, "OMP_NUM_THREADS": "1"}) for name in "ab"]
    assert [process.wait(timeout=50) for process in processes] == [0, 0]
    card = Card()
    book = Book(file, card.measure)
    configs = (Config({"BLOCK": 1}), Config({"BLOCK": 2}))
    for name in "ab":
        assert {book.pick(name, (i,), configs, lambda config: None) for i in range(40)} == {configs[1]}
    assert card.num_searches == 0


def test_threads_share_one_search(tmp_path: Path) -> None:
    card, inside, go = Card(1.0, 2.0, 3.0), threading.Event(), threading.Event()
    book = Book(tmp_path / "card.json", card.measure)

    def run(config: Config) -> None:
        inside.set()
        assert go.wait(10)

    threads = [threading.Thread(target=book.pick, args=("gemm", (), CONFIGS, run)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert card.num_searches == 1


def test_what_was_found_for_other_sources_is_not_asked(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a.py", "x"), ("a.py", "y"), ("b.py", "y"), ("c.py", ""), ("notes.txt", "no source")):
        (tmp_path / name).write_text(content)
        digests.add(sources_digest(tmp_path))
    assert len(digests) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="nothing but Linux computes with what is kept there")
@pytest.mark.parametrize("xdg", [None, "", "/var/tmp/there"])
def test_the_cache_folder_is_the_one_of_the_rest(xdg: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALLBOARD_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_folder("tuning") == platformdirs.user_cache_path("callboard", appauthor=False) / "tuning"
    monkeypatch.setenv("CALLBOARD_CACHE_DIR", "~/elsewhere")
    assert cache_folder("tuning") == Path("~/elsewhere/tuning").expanduser()
