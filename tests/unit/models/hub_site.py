"""A server on this machine that answers as the hubs do, and a model that it has."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

WEIGHTS = random.Random(1).randbytes(3 << 20)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "README.md": b"not wanted",
    "onnx/model.onnx": b"not wanted",
    "quantized/tiny.gguf": b"GGUF and so on",
}
REPO = "org/tiny"
COMMIT = "5f2c" * 10


class Hub(http.server.BaseHTTPRequestHandler):
    """Both hubs at once. Class attributes are what a test sets, and what it reads afterwards."""

    files: dict[str, bytes]
    sent: list[tuple[str, str]]  # (path, Range header)
    tokens: list[tuple[str, str]]  # (path, Authorization header)
    break_at: dict[str, list[int]]  # file: after how many bytes to break, a time each
    hold_at: dict[str, int]  # file: after how many bytes to wait until the gate opens
    gate: threading.Event
    ranges = True
    redirect = ""
    token = ""
    wrong: dict[str, bytes]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        authorization = self.headers.get("Authorization", "")
        self.tokens.append((url.path, authorization))
        if self.token and authorization != f"Bearer {self.token}" and not url.path.startswith("/cdn/"):
            self._answer(401, b"")
        elif url.path == f"/api/models/{REPO}/revision/main" and "blobs=true" in url.query:
            self._answer(200, json.dumps(self._hugging_face()).encode())
        elif url.path == f"/api/v1/models/{REPO}/repo/files" and parse_qs(url.query)["Revision"] == ["master"]:
            self._answer(200, json.dumps(self._modelscope()).encode())
        elif url.path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            name = unquote(url.path.split(COMMIT)[1][1:])
            if self.redirect:
                self.send_response(302)
                self.send_header("Location", f"{self.redirect}/cdn/{name}")
                self.end_headers()
            else:
                self._send_file(name)
        elif url.path.startswith("/cdn/"):
            self._send_file(url.path.removeprefix("/cdn/"))
        elif url.path == f"/api/v1/models/{REPO}/repo":
            self._send_file(parse_qs(url.query)["FilePath"][0])
        else:
            self._answer(404, b"{}")

    def _hugging_face(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, content in self.files.items():
            git_id = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id}
            if name.endswith((".safetensors", ".gguf")):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        return {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}

    def _modelscope(self) -> dict[str, Any]:
        files: list[dict[str, Any]] = [{"Path": "onnx", "Type": "tree", "Size": 0}]
        for name, content in self.files.items():
            digest = hashlib.sha256(content).hexdigest()
            files.append({"Path": name, "Type": "blob", "Size": len(content), "Sha256": digest, "Revision": "master"})
        return {"Code": 200, "Data": {"Files": files}, "Message": "success"}

    def _send_file(self, name: str) -> None:
        asked = self.headers.get("Range", "")
        self.sent.append((name, asked))
        content = self.wrong.get(name, self.files[name])
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        self.send_response(206 if asked and self.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if name in self.hold_at:
            half = self.hold_at[name]
            self.wfile.write(content[start:half])
            self.gate.wait()
            self.wfile.write(content[half:])
            return
        breaks = self.break_at.get(name)
        self.wfile.write(content[start : breaks.pop(0)] if breaks else content[start:])
        if breaks is not None:
            self.close_connection = True

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to the test's output."""


@contextmanager
def serving_hub() -> Iterator[tuple[type[Hub], str]]:
    """A hub of its own, and its address."""

    class Handler(Hub):
        files = dict(FILES)  # noqa: RUF012
        sent: list[tuple[str, str]] = []  # noqa: RUF012
        tokens: list[tuple[str, str]] = []  # noqa: RUF012
        break_at: dict[str, list[int]] = {}  # noqa: RUF012
        hold_at: dict[str, int] = {}  # noqa: RUF012
        gate = threading.Event()
        wrong: dict[str, bytes] = {}  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Handler.port = server.server_port  # type: ignore[attr-defined]
    yield Handler, f"http://127.0.0.1:{server.server_port}/"
    Handler.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    with serving_hub() as (handler, url):
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(name, url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("no_proxy", "*")
        yield handler
