"""Keys of a gateway: their file, what they open, and what they may spend."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.gateway.doors import door_of
from callboard.actors.gateway.keys import Keys, NoSuchKey, Scope, change, hash_of, new_key, read_keys, revoke_key
from callboard.actors.gateway.rates import Allowance, Bucket
from callboard.runtime.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_the_file_has_no_key_in_it_and_is_for_its_owner_alone(path: Path) -> None:
    secret = new_key(path, "reports", [Scope.CHAT], requests_per_minute=5, tokens_per_minute=100)
    assert secret not in path.read_text()
    assert secret.removeprefix("cb-") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (key,) = read_keys(path)
    assert (key.name, key.scopes, key.requests_per_minute, key.tokens_per_minute) == ("reports", ("chat",), 5, 100)
    assert Keys(path).find(secret) == key
    assert Keys(path).find(secret + "x") is None
    assert Keys(path).find(key.hash) is None  # who reads the file has no key


def test_a_new_key_of_a_name_revokes_the_old_one(path: Path) -> None:
    first = new_key(path, "reports")
    other = new_key(path, "other")
    second = new_key(path, "reports")
    keys = Keys(path)
    assert keys.find(first) is None
    assert keys.find(second) is not None
    assert keys.find(other) is not None
    assert len(read_keys(path)) == 3


def test_a_change_of_the_file_counts_at_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = new_key(path, "reports")
    keys = Keys(path)
    assert keys.find(secret)
    revoke_key(path, "reports")
    assert keys.find(secret) is None
    again = new_key(path, "reports")
    assert keys.find(again)
    path.write_text("{ damaged")
    with caplog.at_level(logging.ERROR):
        assert keys.find(again)  # what it said before holds
    assert "the keys stay as they were" in caplog.text
    path.unlink()
    assert keys.find(again) is None
    with pytest.raises(NoSuchKey, match="'nobody'"):
        revoke_key(path, "nobody")


def test_a_key_expires(path: Path) -> None:
    assert finds_one_that_expires(path, time.time() + 100)
    assert not finds_one_that_expires(path, time.time() - 1)


def finds_one_that_expires(path: Path, expires: float) -> bool:
    secret = new_key(path, "reports", expires=expires)
    return Keys(path).find(secret) is not None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"keys": 3}', '{"keys": [{"name": "a", "hash": "secret"}]}', '{"key": []}']
)
def test_a_damaged_file_keeps_the_gateway_from_starting(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigError, match="keys"):
        Keys(path)
    path.unlink()
    with pytest.raises(ConfigError, match="there is no file of keys"):
        Keys(path)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, 'a"b'])
def test_names_are_plain(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a key"):
        new_key(path, name)
    assert not path.exists()


def test_the_allowance_stays_with_the_name_until_its_limits_change(path: Path) -> None:
    first = new_key(path, "reports", requests_per_minute=1)
    keys = Keys(path)
    key = keys.find(first)
    assert key
    assert keys.allowance(key).admit(0.0) == ("", 0.0)
    second = keys.find(new_key(path, "reports", requests_per_minute=1))
    assert second
    assert keys.allowance(second).admit(0.0)[0] == "requests"
    third = keys.find(new_key(path, "reports", requests_per_minute=2))
    assert third
    assert keys.allowance(third).admit(0.0) == ("", 0.0)


def test_one_change_at_a_time(path: Path) -> None:
    with change(path) as keys:
        assert keys == []
    pid = os.fork() if hasattr(os, "fork") else -1
    if pid == 0:
        for number in range(20):
            new_key(path, f"child-{number}")
        os._exit(0)
    for number in range(20):
        new_key(path, f"parent-{number}")
    assert os.waitpid(pid, 0)[1] == 0
    assert len(read_keys(path)) == 40


def test_hashes_are_sha256() -> None:
    assert hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Doors


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/chat/completions", Scope.CHAT),
        ("/v1/completions", Scope.CHAT),
        ("/v1/messages/count_tokens", Scope.CHAT),
        ("/v1/responses/resp_1/cancel", Scope.CHAT),
        ("/v2/models/smollm2/infer", Scope.CHAT),
        ("/v1/embeddings", Scope.EMBEDDINGS),
        ("/v1/files/file-1/content", Scope.TRAINING),
        ("/v1/fine_tuning/jobs", Scope.TRAINING),
        ("/v1/sessions/a", Scope.ADMIN),
        ("/web/approvals", Scope.ADMIN),
        ("/metrics", Scope.METRICS),
        ("/v1/models/a/b", None),
        ("/v1/chatter", Scope.ADMIN),
        ("/nobody/thought/of/this", Scope.ADMIN),
        ("/health/more", Scope.ADMIN),
        ("//health", Scope.ADMIN),
        ("/static", None),
    ],
)
def test_doors(path: str, scope: Scope | None) -> None:
    assert door_of(path).scope == scope


def test_only_probes_and_pages_are_open() -> None:
    assert [
        path for path in ("/health", "/ready", "/", "/openapi.json", "/static/a.js") if door_of(path).needs_key
    ] == []
    assert door_of("/v1/models").needs_key


# Rates


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=200))
def test_no_more_requests_than_the_rate_and_one_bucket_full(per_minute: int, gaps: list[float]) -> None:
    allowance = Allowance(per_minute, 0)
    now, admitted = 100.0, 0
    for gap in gaps:
        now += gap
        what, seconds = allowance.admit(now)
        admitted += not what
        if what:
            assert seconds > 0
            assert Allowance.admit(allowance, now + seconds + 1e-6) == ("", 0.0)
            now += seconds + 1e-6
            admitted += 1
    assert admitted <= per_minute + (now - 100.0) * per_minute / 60 + 1e-3


def test_tokens_are_paid_after_the_answer() -> None:
    allowance = Allowance(0, 60)
    assert allowance.admit(0.0) == ("", 0.0)
    allowance.spend(100, 0.0)  # more than there was
    what, seconds = allowance.admit(0.0)
    assert (what, seconds) == ("tokens", 41.0)
    assert allowance.admit(40.9)[0] == "tokens"
    assert allowance.admit(41.1) == ("", 0.0)
    assert allowance.headers(41.1)["x-ratelimit-remaining-tokens"] == "1"


def test_without_limits_everything_passes() -> None:
    allowance = Allowance(0, 0)
    for _ in range(10_000):
        assert allowance.admit(0.0) == ("", 0.0)
    assert allowance.headers(0.0) == {}


def test_a_bucket_never_holds_more_than_a_minute() -> None:
    bucket = Bucket(30)
    bucket.fill(1e9)
    assert bucket.level == 30
    bucket.take(31, 1e9)
    bucket.fill(1e9 - 5)  # a clock reading that comes late
    assert bucket.level == -1


def test_the_file_is_json_that_others_can_read(path: Path) -> None:
    new_key(path, "reports")
    content = msgspec.json.decode(path.read_bytes())
    assert set(content["keys"][0]) >= {"name", "hash", "scopes"}
