"""Tokens on disk: cached by content, the same from many processes as from one, whole or not there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import write_tokenizer

from callboard.actors.data import batches as batches_module
from callboard.actors.data import tokenized as tokenized_module
from callboard.actors.data.ahead import num_workers_for, tokenize_ahead
from callboard.actors.data.data_file import Problem, open_data
from callboard.actors.data.errors import BadRecord, DataFailed
from callboard.actors.data.lengths import Counts, TooLong
from callboard.actors.data.options import DataOptions
from callboard.actors.data.rendering import Rendered, Renderer
from callboard.actors.data.tokenized import Pair, Sequence, tokenized
from callboard.runtime.errors import ConfigError

NUM_RECORDS, BATCH_RECORDS, NUM_BATCHES = 300, 64, 5


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(batches_module, "BATCH_RECORDS", BATCH_RECORDS)
    path = tmp_path / "records"
    rows = [{"instruction": f"Say {n}", "output": str(n) * (n % 7 + 1)} for n in range(NUM_RECORDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tokens").iterdir())


def test_what_is_cached_is_what_was_rendered(records: Path, model: Path, cache: Path, renderer: Renderer) -> None:
    found = tokenized(records, model, DataOptions(), cache=cache)
    assert len(found) == NUM_RECORDS
    total = with_loss = 0
    for index, (_, sample) in enumerate(open_data(records).samples()):
        assert not isinstance(sample, Problem)
        expected = renderer.render(sample)
        one = found[index]
        assert isinstance(expected, Rendered)
        assert isinstance(one, Sequence)
        assert one.token_ids.tolist() == expected.token_ids.tolist()
        assert one.loss_mask.tolist() == expected.loss_mask.tolist()
        assert found.lengths()[index] == expected.num_tokens
        total += expected.num_tokens
        with_loss += expected.num_loss_tokens
    counts = found.about.counts
    assert (counts.num_records, counts.num_samples, counts.num_tokens) == (NUM_RECORDS, NUM_RECORDS, total)
    assert counts.num_loss_tokens == with_loss
    first = found.sequence(0)
    assert isinstance(first.token_ids, np.memmap)
    assert first.token_ids.dtype == np.uint16
    for index in (-1, NUM_RECORDS):
        with pytest.raises(IndexError):
            found[index]


def test_many_processes_make_the_same_as_one(records: Path, model: Path) -> None:
    file = open_data(records)
    runs = []
    for workers in (0, 2):
        with closing(tokenize_ahead(file, model, DataOptions(), workers)) as batches:
            runs.append(list(batches))
    alone, together = runs
    assert len(alone) == len(together) == NUM_BATCHES
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.loss_mask.tolist() == other.loss_mask.tolist()
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.counts == other.counts


def test_small_files_are_worth_no_process(records: Path) -> None:
    assert num_workers_for(records) == 0
    os.truncate(records, 1 << 32)
    assert num_workers_for(records) >= 1


KILLED = """
import os, sys
from pathlib import Path
from callboard.actors.data.ahead import tokenize_ahead
from callboard.actors.data.data_file import Problem, open_data
from callboard.actors.data.options import DataOptions
if __name__ == "__main__":
    batches = tokenize_ahead(open_data(Path(sys.argv[1])), Path(sys.argv[2]), DataOptions(), 1)
    next(batches)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_a_parent_that_is_killed(records: Path, model: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(records), str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        (worker,) = map(int, parent.stdout.readline().split())
        assert worker
        parent.send_signal(signal.SIGKILL)
        # The worker has our pipe as its output: it closes when the worker is gone.
        assert parent.stdout.read() == b""


def test_a_worker_that_dies_is_an_error(records: Path, model: Path) -> None:
    before = set(multiprocessing.active_children())
    batches = tokenize_ahead(open_data(records), model, DataOptions(), 1)
    with closing(batches):
        next(batches)
        for worker in set(multiprocessing.active_children()) - before:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        # The last batch was not handed out yet.
        with pytest.raises(DataFailed, match=r"a process that tokenizes .* died"):
            list(batches)


def test_the_second_time_nothing_is_tokenized(
    records: Path, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenized(records, model, DataOptions(), cache=cache)
    monkeypatch.setattr(tokenized_module, "tokenize_ahead", None)
    seen: list[Counts] = []
    again = tokenized(records, model, DataOptions(), cache=cache, progress=seen.append)
    assert again.folder == first.folder
    assert seen == [first.about.counts]
    moved = records.rename(records.with_name("other name"))
    assert tokenized(moved, model, DataOptions(), cache=cache).folder == first.folder


def test_what_the_tokens_depend_on_makes_another_entry(records: Path, model: Path, cache: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other.gguf", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    found = {
        tokenized(records, path, options, cache=cache).folder
        for path, options in [
            (model, DataOptions()),
            (other, DataOptions()),
            (model, DataOptions(template="alpaca")),
            (model, DataOptions(max_tokens=40)),
            (model, DataOptions(max_tokens=40, too_long=TooLong.DROP)),
        ]
    }
    records.write_text(records.read_text() + '{"instruction": "x", "output": "y"}\n')
    found.add(tokenized(records, model, DataOptions(), cache=cache).folder)
    assert len(found) == 6
    same = write_tokenizer(tmp_path / "same.gguf")
    assert tokenized(records, same, DataOptions(), cache=cache).folder in found


def test_a_bad_record_stops_by_default_and_is_counted_if_skipped(records: Path, model: Path, cache: Path) -> None:
    lines = records.read_text().splitlines(keepends=True)
    lines[100] = '{"instruction": "x"}\n'
    lines[250] = "nothing\n"
    records.write_text("".join(lines))
    with pytest.raises(BadRecord) as caught:
        tokenized(records, model, DataOptions(), cache=cache)
    assert str(caught.value).startswith(f"{records}:101: ")
    assert "--skip-bad" in caught.value.hint
    assert folders(cache) == []
    found = tokenized(records, model, DataOptions(skip_bad=True), cache=cache)
    assert (len(found), found.about.counts.num_bad) == (NUM_RECORDS - 2, 2)
    assert [problem.line for problem in found.about.problems] == [101, 251]


def test_long_samples_are_counted(records: Path, model: Path, cache: Path) -> None:
    whole = tokenized(records, model, DataOptions(), cache=cache)
    limit = 36
    num_long = int((whole.lengths() > limit).sum())
    assert 0 < num_long < NUM_RECORDS
    cut = tokenized(records, model, DataOptions(max_tokens=limit), cache=cache)
    assert cut.about.counts.num_truncated + cut.about.counts.num_dropped == num_long
    assert cut.lengths().max() == limit
    dropped = tokenized(records, model, DataOptions(max_tokens=limit, too_long=TooLong.DROP), cache=cache)
    assert (dropped.about.counts.num_dropped, len(dropped)) == (num_long, NUM_RECORDS - num_long)
    split = tokenized(records, model, DataOptions(max_tokens=limit, too_long=TooLong.SPLIT), cache=cache)
    assert split.about.counts.num_split == num_long
    assert split.about.counts.num_loss_tokens == whole.about.counts.num_loss_tokens


def test_pairs_stay_together(model: Path, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs"
    path.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}) + "\n")
    found = tokenized(path, model, DataOptions(), cache=cache)
    pair = found[0]
    assert len(found) == 1
    assert isinstance(pair, Pair)
    assert len(pair.chosen.token_ids) == len(pair.rejected.token_ids) + 1
    assert found.about.counts.num_samples == 1


def test_a_file_of_which_nothing_is_left_is_empty(model: Path, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text(json.dumps({"instruction": "q", "output": "a"}))
    found = tokenized(path, model, DataOptions(max_tokens=2, too_long=TooLong.DROP), cache=cache)
    assert (len(found), found.lengths().tolist()) == (0, [])


def test_a_full_disk_leaves_nothing_behind(
    records: Path, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokenized_module.os, "fsync", full)
    with pytest.raises(DataFailed, match="No space left") as caught:
        tokenized(records, model, DataOptions(), cache=cache)
    assert "CALLBOARD_CACHE_DIR" in caught.value.hint
    assert folders(cache) == []


MAKING = """
import sys
from pathlib import Path
from callboard.actors.data.options import DataOptions
from callboard.actors.data.tokenized import tokenized
def stand_still(counts):
    print("making", flush=True)
    sys.stdin.read()
records, model, cache = map(Path, sys.argv[1:])
tokenized(records, model, DataOptions(), cache=cache, progress=stand_still)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(
    records: Path, model: Path, cache: Path
) -> None:
    command = [sys.executable, "-c", MAKING, str(records), str(model), str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"making\n"
        (left,) = (cache / "tokens").glob(".making-*.lock")
        found = tokenized(records, model, DataOptions(), cache=cache)
        assert left.with_suffix("").is_dir(), "it is still being written"
        other.kill()
    shutil.rmtree(found.folder)
    again = tokenized(records, model, DataOptions(), cache=cache)
    assert folders(cache) == [again.folder.name]


def test_who_comes_second_takes_what_the_first_made(
    records: Path, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenized(records, model, DataOptions(), cache=cache)
    stored = cache / "stored"
    first.folder.rename(stored)
    rename = os.rename

    def race(source: Path, target: Path) -> None:
        shutil.copytree(stored, target)
        rename(source, target)

    monkeypatch.setattr(tokenized_module.os, "rename", race)
    second = tokenized(records, model, DataOptions(), cache=cache)
    assert second.folder == first.folder
    assert folders(cache) == [first.folder.name]


def test_settings_that_make_no_sense_are_refused(records: Path, model: Path, cache: Path) -> None:
    for max_tokens in (-1, 1):
        with pytest.raises(ConfigError, match="max_tokens"):
            DataOptions(max_tokens=max_tokens)
    for workers in (0, 1):
        with pytest.raises(ConfigError, match="no template 'x'"):
            tokenized(records, model, DataOptions(template="x"), cache=cache, workers=workers)
