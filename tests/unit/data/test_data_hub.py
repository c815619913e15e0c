"""Data sets of the hubs, against a server on this machine that answers as they do."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from callboard.actors.data.errors import NoSuchData
from callboard.actors.data.hub_data import choose_files, fetch_data
from callboard.actors.data.mixture import files_of
from callboard.actors.models import hub as hub_module
from callboard.actors.models.errors import PullFailed
from callboard.actors.models.http_files import RemoteFile

REPO, COMMIT = "org/some.data", "5f2c" * 10
FILES = {
    "README.md": b"# about",
    "dataset_infos.json": b"{}",
    "data/train-00000.jsonl": b'{"text": "a"}\n',
    "data/train-00001.jsonl": b'{"text": "b"}\n',
    "data/test.jsonl": b'{"text": "c"}\n',
    "extra/more.csv": b"text\nd\n",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Both hubs at once; `asked` are the paths of all requests."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append(url.path)
        if url.path == f"/api/datasets/{REPO}/revision/main" and query.get("blobs") == "true":
            self._answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": self._siblings()}).encode())
        elif url.path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/"):
            self._answer(200, self.files[unquote(url.path.split(COMMIT)[1][1:])])
        elif url.path == f"/api/v1/datasets/{REPO}/repo/tree" and query["Recursive"] == "true":
            page, size = int(query["PageNumber"]), int(query["PageSize"])
            listed = self._listed()[(page - 1) * size : page * size]
            self._answer(200, json.dumps({"Code": 200, "Data": {"Files": listed}}).encode())
        elif url.path == f"/api/v1/datasets/{REPO}/repo":
            self._answer(200, self.files[query["FilePath"]])
        else:
            self._answer(404, b"{}")

    def _siblings(self) -> list[dict[str, Any]]:
        return [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest(),
            }
            for name, content in self.files.items()
        ]

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {"Path": name, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
            for name, content in self.files.items()
        ] + [{"Path": "data", "Type": "tree", "Size": 0}]

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the test's output."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    class Handler(Hub):
        files = dict(FILES)  # noqa: RUF012
        asked: list[str] = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}/")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("no_proxy", "*")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", [f"hf:{REPO}", f"ms:{REPO}", f"hf:{REPO}@main", f"ms:{REPO}/data"])
def test_the_training_files_of_a_data_set_are_fetched_once(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hub_module, "_PAGE_SIZE", 2)  # ModelScope's list comes in pages
    seen: list[tuple[str, int, int]] = []
    paths = fetch_data(name, lambda *progress: seen.append(progress))
    assert [path.read_bytes() for path in paths] == [FILES["data/train-00000.jsonl"], FILES["data/train-00001.jsonl"]]
    assert ("data/train-00001.jsonl", 14, 14) in seen
    asked = len(hub.asked)
    assert files_of(name) == paths
    assert len(hub.asked) == asked, "what is here is not asked for again"
    paths[0].write_bytes(b"cut")
    assert fetch_data(name) == paths
    assert paths[0].read_bytes() == FILES["data/train-00000.jsonl"]


def test_one_file_of_a_data_set(hub: type[Hub]) -> None:
    (path,) = fetch_data(f"hf:{REPO}/extra/more.csv")
    assert path.read_bytes() == FILES["extra/more.csv"]
    assert not [asked for asked in hub.asked if "train" in asked]


def remote(*names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, "", 1) for name in names)


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["a.json", "b.json", "README.md"], "", ["a.json", "b.json"]),
        (["a.json", "a_test.json", "dev.json"], "", ["a.json"]),
        (["my-train.json", "rest.json"], "", ["my-train.json"]),
        (["trainer.json", "latest.json"], "", ["trainer.json", "latest.json"]),
        (["x/a.json", "y/b.json"], "y/", ["y/b.json"]),
        (["test.json"], "test.json", ["test.json"]),
        ([".cache/a.json", "b.json"], "", ["b.json"]),
    ],
)
def test_which_files_are_trained_on(names: list[str], wanted: str, chosen: list[str]) -> None:
    assert [file.name for file in choose_files("hf:o/n", wanted, remote(*names))] == chosen


def test_the_same_records_in_two_kinds_of_files_are_not_taken_twice() -> None:
    with pytest.raises(NoSuchData, match=r"several kinds .JSON, Parquet.") as caught:
        choose_files("hf:o/n", "", remote("train.jsonl", "train.parquet"))
    assert "hf:o/n/..." in caught.value.hint
    with pytest.raises(NoSuchData, match="no file of training data"):
        choose_files("hf:o/n", "", remote("README.md", "test.json"))


def test_what_is_not_there_or_not_reached_is_a_clear_error(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf:org/none", "ms:org/none", f"hf:{REPO}@v9"):
        with pytest.raises(PullFailed, match="not there"):
            fetch_data(name)
    for name in ("hf:org", "hf:", "hf:../etc/passwd", f"hf:{REPO}/../x"):
        with pytest.raises(NoSuchData, match="names no data set"):
            fetch_data(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PullFailed, match="cannot be reached") as caught:
        fetch_data(f"hf:{REPO}")
    assert "network" in caught.value.hint
