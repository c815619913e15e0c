"""Files over HTTP: large ones go on where they broke off, also in another process on another day.

Plain `urllib`: what the hubs' own libraries have fetched of a file is lost with their process.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from .errors import PullFailed

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
# How often in a row a connection may break without having brought anything.
ATTEMPTS = 3
PART = ".part"

_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
_RANGE_NOT_SATISFIABLE = 416


class RemoteFile(msgspec.Struct, frozen=True):
    """A file and what is known of its content: SHA-256, or the name that git gives it, or neither ("")."""

    name: str
    url: str
    size: int
    sha256: str = ""
    git_id: str = ""

    def is_content_of(self, path: Path) -> bool:
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return file_sha256(path) == self.sha256
        if self.git_id:
            header = f"blob {self.size}\0".encode()
            return _digest(path, hashlib.sha1(header, usedforsecurity=False)) == self.git_id
        return True


def fetch_json(url: str, headers: Mapping[str, str]) -> Any:
    """Raises PullFailed."""
    for attempt in range(ATTEMPTS):
        try:
            with _open(url, headers) as response:
                return msgspec.json.decode(response.read())
        except msgspec.DecodeError as error:
            raise PullFailed(f"{url} answers no JSON", hint="is the hub's address right?") from error
        except urllib.error.HTTPError as error:
            raise refused(url, error) from error
        except _BROKEN as error:
            if attempt == ATTEMPTS - 1:
                raise PullFailed(
                    f"{url} cannot be reached: {error}", hint="check the network, then pull again"
                ) from error
    raise AssertionError("unreachable")


def fetch_file(file: RemoteFile, folder: Path, headers: Mapping[str, str], progress: Callable[[int], None]) -> Path:
    """Bring `file` into `folder`, checked and on disk; what is there already is not fetched again.

    `progress` is called with the bytes of it that are there. Raises PullFailed; the part that came is then kept, and
    the next call goes on behind it.
    """
    target, part = folder / file.name, folder / (file.name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and file.is_content_of(target):
        progress(file.size)
        return target
    failures = 0
    while not part.is_file() or part.stat().st_size < file.size:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _append(file, part, headers, progress)
        except urllib.error.HTTPError as error:
            if error.code != _RANGE_NOT_SATISFIABLE:
                raise refused(file.url, error) from error
            error.close()
            part.unlink()
        except _BROKEN as error:
            failures = failures + 1 if part.is_file() and part.stat().st_size == before else 1
            if failures == ATTEMPTS:
                raise PullFailed(
                    f"{file.name} breaks off: {error or type(error).__name__}",
                    hint="pull again: it goes on with what is already here",
                ) from error
    if not file.is_content_of(part):
        part.unlink()
        raise PullFailed(
            f"{file.name} came with other content than the hub says", hint="nothing of it was kept; pull again"
        )
    with part.open("rb") as done:
        os.fsync(done.fileno())
    os.replace(part, target)
    progress(file.size)
    return target


def file_sha256(path: Path) -> str:
    return _digest(path, hashlib.sha256())


def refused(url: str, error: urllib.error.HTTPError) -> PullFailed:
    """What an HTTP error means for somebody who wants a model. Closes the answer."""
    error.close()
    if error.code in (401, 403):
        return PullFailed(
            f"{url} is not given to everybody ({error.code})", hint="set HF_TOKEN, or ask for access there"
        )
    if error.code == 404:
        return PullFailed(f"{url} is not there", hint="check the model's name and revision")
    return PullFailed(f"{url} answers {error.code} {error.reason}", hint="pull again later")


def _append(file: RemoteFile, part: Path, headers: Mapping[str, str], progress: Callable[[int], None]) -> None:
    done = part.stat().st_size if part.is_file() else 0
    wanted = {**headers, "Range": f"bytes={done}-"} if done else headers
    with _open(file.url, wanted) as response:
        if done and response.status != http.client.PARTIAL_CONTENT:
            done = 0  # this server sends files as a whole only
        with part.open("ab" if done else "wb") as out:
            while chunk := response.read(CHUNK_BYTES):
                done += len(chunk)
                if done > file.size:
                    out.truncate(0)
                    raise PullFailed(f"{file.name} is longer than the hub says ({file.size:,} bytes)")
                out.write(chunk)
                progress(done)
    if done < file.size:
        raise ConnectionError(f"{done:,} of {file.size:,} bytes came")


class _KeepsSecrets(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but tells the token to nobody but the host that it is for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def _open(url: str, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "callboard", **headers})
    return urllib.request.build_opener(_KeepsSecrets).open(request, timeout=TIMEOUT_S)


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
