"""What `runtime/credentials.py` promises, without a server; the real server's word is in integration/test_server.py."""

from __future__ import annotations

import base64
import json
import re
import stat
from pathlib import Path
from typing import Any

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.credentials import create_account, make_trust, mint_user, mint_user_file
from callboard.runtime.errors import ConfigError
from callboard.runtime.roles import NODE, Role


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def token_of(creds: str) -> str:
    match = re.search(r"BEGIN NATS USER JWT-----\n(\S+)\n", creds)
    assert match
    return match[1]


def public_key(seed: str) -> str:
    return bytes(nkeys.from_seed(seed.encode()).public_key).decode()


@pytest.fixture
def seed(tmp_path: Path) -> str:
    return create_account(tmp_path / "account.seed")


def test_account_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "account.seed"
    seed = create_account(path)
    assert create_account(path) == seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_damaged_account_seed_is_said_to_be_damaged(tmp_path: Path, seed: str) -> None:
    path = tmp_path / "account.seed"
    flipped = "B" if seed[20] != "B" else "C"
    for damaged in ("", "hello", seed[:-3], seed[:20] + flipped + seed[21:]):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            create_account(path)


def test_user_is_signed_by_the_account_and_by_its_own_key(seed: str) -> None:
    creds = mint_user(seed, "engine", "n1")
    token = token_of(creds)
    signed, _, signature = token.rpartition(".")
    account = nkeys.from_seed(seed.encode())
    assert account.verify(signed.encode(), base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    user_seed = re.search(r"SEED-----\n(\S+)\n", creds)
    assert user_seed
    claims = claims_of(token)
    assert claims["sub"] == public_key(user_seed[1])
    assert claims["iss"] == public_key(seed)
    assert claims["name"] == "engine"


def test_two_users_share_neither_key_nor_inbox(seed: str) -> None:
    one, two = (claims_of(token_of(mint_user(seed, "x", node_id))) for node_id in ("one", "two"))
    assert one["sub"] != two["sub"]
    assert "inbox.one.>" in one["nats"]["sub"]["allow"]
    assert not {"inbox.>", "inbox.one.>", ">"} & set(two["nats"]["sub"]["allow"])


def test_lists_hold_only_what_is_allowed(seed: str) -> None:
    nats = claims_of(token_of(mint_user(seed, "x", "n1")))["nats"]
    assert set(nats["pub"]) == set(nats["sub"]) == {"allow"}
    assert nats["pub"]["allow"] == [subject.replace("{inbox}", "n1") for subject in NODE.publish]


def test_a_role_is_two_lists_of_subjects(seed: str) -> None:
    listener = Role("listener", publish=(), subscribe=("inbox.{node_id}.>", "topic.>"))
    nats = claims_of(token_of(mint_user(seed, "x", "n7", listener)))["nats"]
    assert nats["sub"]["allow"] == ["inbox.n7.>", "topic.>"]
    # An empty list would allow everything, so nothing is said by denying everything.
    assert nats["pub"] == {"deny": [">"]}


@given(st.text(max_size=70).filter(lambda text: not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text)))
def test_a_node_id_that_is_no_token_is_refused(node_id: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        mint_user(_SEED, "x", node_id)


_SEED = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_ACCOUNT).decode()


def test_creds_file_is_private_and_replaced_whole(tmp_path: Path, seed: str) -> None:
    path = tmp_path / "users" / "a.creds"
    assert mint_user_file(path, seed, "a", "n1") == path
    first = path.read_text()
    mint_user_file(path, seed, "a", "n1")
    assert path.read_text() != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["a.creds"]


def test_operator_is_new_each_time_and_vouches_for_the_same_account(seed: str) -> None:
    one, two = make_trust(seed), make_trust(seed)
    account = public_key(seed)
    assert one.operator_jwt != two.operator_jwt
    assert account in one.accounts
    assert account in two.accounts
    assert claims_of(one.accounts[account])["iss"] == claims_of(one.operator_jwt)["sub"]
