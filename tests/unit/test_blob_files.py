"""Whatever processes put, hold, drop, and however they end: bytes are there exactly as long as somebody holds them."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from callboard.runtime.blob_files import NEVER, BlobFiles, sweep
from callboard.schemas.blob import Blob

processes = st.integers(0, 2)


class HoldersMachine(RuleBasedStateMachine):
    """Three processes, of which each may be killed and start again, against a set of holders for each blob."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="callboard-blobs-")
        self.base = Path(self.folder.name)
        self.living = [BlobFiles(self.base) for _ in range(3)]
        self.holders: dict[Blob, set[BlobFiles]] = {}

    def teardown(self) -> None:
        for files in self.living:
            files.end()
        assert not [path for path in self.base.rglob("*") if path.is_file()]
        self.folder.cleanup()

    @rule(process=processes, data=st.binary(min_size=1, max_size=100))
    def put(self, process: int, data: bytes) -> None:
        files = self.living[process]
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data), secrets.token_hex(16), files.lease)
        writer = files.writer(blob.id, NEVER)
        writer.write(data)
        writer.finish()
        self.holders[blob] = {files}

    @rule(process=processes, choice=st.data())
    def hold(self, process: int, choice: st.DataObject) -> None:
        if self.holders:
            blob = choice.draw(st.sampled_from(list(self.holders)))
            is_there = bool(self.holders[blob])
            assert self.living[process].hold(blob, NEVER) == is_there
            if is_there:
                self.holders[blob].add(self.living[process])

    @rule(process=processes, choice=st.data())
    def drop(self, process: int, choice: st.DataObject) -> None:
        if self.holders:
            blob = choice.draw(st.sampled_from(list(self.holders)))
            self.living[process].drop(blob.id)
            self.holders[blob].discard(self.living[process])

    @rule(process=processes)
    def kill(self, process: int) -> None:
        """The kernel closes what a dead process had open, so its lock is free. Somebody sweeps."""
        dead = self.living[process]
        os.close(dead._lock)
        self.living[process] = BlobFiles(self.base)
        assert sweep(self.base) == 1
        for holders in self.holders.values():
            holders.discard(dead)

    @invariant()
    def what_is_held_is_there_and_nothing_else(self) -> None:
        assert sweep(self.base) == 0
        for blob, holders in self.holders.items():
            for files in self.living:
                reader = files.open(blob)
                assert (reader is not None) == bool(holders)
                if reader is not None:
                    while reader.read(64):
                        pass
                    reader.close()


TestHolders = HoldersMachine.TestCase
TestHolders.settings = settings(max_examples=30, stateful_step_count=25)
