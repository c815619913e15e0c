"""Settings: what wins over what, and what is said about what does not fit."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.errors import ConfigError
from callboard.runtime.settings import Paths, Settings, known_keys, load_settings


def load(
    folder: Path, *, project: str = "", user: str = "", flags: dict[str, object] | None = None, **variables: str
) -> Settings:
    for name, text in (("project.toml", project), ("user.toml", user)):
        (folder / name).write_text(text)
    return load_settings(flags, environment=variables, project=folder / "project.toml", user=folder / "user.toml")


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert load_settings(environment={}, project=missing, user=missing) == Settings()


def test_flags_win_over_environment_over_project_over_user(tmp_path: Path) -> None:
    user = 'model = "user"\ntimeout = 1\nlog_level = "error"\nnats = "user"'
    project = 'model = "project"\ntimeout = 2\nlog_level = "debug"'
    environment = {"CALLBOARD_MODEL": "environment", "CALLBOARD_TIMEOUT": "3"}
    found = load(tmp_path, user=user, project=project, flags={"model": "flag", "creds": None}, **environment)
    assert (found.model, found.timeout, found.log_level, found.nats) == ("flag", 3.0, "debug", "user")


def test_tables_are_merged_key_by_key(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        user="[server]\nport = 4222\nmax_disk = 5\n[engine]\nblock_size = 16\n",
        project="[server]\nmax_disk = 7\n",
        CALLBOARD_SERVER_MAX_PAYLOAD="2097152",
        CALLBOARD_ENGINE_MAX_BATCH="8",
        CALLBOARD_ENGINE_DEVICE="cuda:0",
    )
    assert (found.server.port, found.server.max_disk, found.server.max_payload) == (4222, 7, 2 << 20)
    assert found.engine == {"block_size": 16, "max_batch": 8, "device": "cuda:0"}


@pytest.mark.parametrize(
    ("text", "key", "guess"),
    [
        ("modle = 1", "modle", "model"),
        ("[server]\nprot = 1", "server.prot", "server.port"),
        ("[sever]\nport = 1", "sever", "server.port"),
        ("drain-timeout = 1", "drain-timeout", "drain_timeout"),
    ],
)
def test_an_unknown_key_names_file_key_and_the_nearest_that_exists(
    tmp_path: Path, text: str, key: str, guess: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, project=text)
    assert f"{tmp_path / 'project.toml'}: unknown key {key}" in str(caught.value)
    assert guess in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('timeout = "soon"', "timeout"),
        ("timeout = -1", "timeout"),
        ("[server]\nport = 70000", "server.port"),
        ('log_level = "loud"', "log_level"),
        ("server = 4", "server is a table"),
        ("model = ", "not valid TOML"),
        ("[model]\nx = 1", "model"),
    ],
)
def test_a_value_that_does_not_fit_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, user=text)
    assert str(tmp_path / "user.toml") in str(caught.value)
    assert words in str(caught.value)


def test_a_variable_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CALLBOARD_TIMEOUT"):
        load(tmp_path, CALLBOARD_TIMEOUT="soon")


def test_a_mistyped_variable_is_found_out_and_a_foreign_one_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, CALLBOARD_SERVER_PROT="1")
    assert "CALLBOARD_SERVER_PORT" in caught.value.hint
    assert load(tmp_path, CALLBOARD_WEATHER="fine", CALLBOARD_STATE_DIR="/somewhere") == Settings()


KEYS = ("ed25519:" + "A" * 43, "ed25519:" + "-_" * 21 + "B")


def test_a_list_is_one_in_a_file_and_parted_by_commas_in_a_variable(tmp_path: Path) -> None:
    assert load(tmp_path).node.allow_tools_from == ()
    in_file = load(tmp_path, user=f'[node]\nallow_tools_from = ["{KEYS[0]}", "{KEYS[1]}"]')
    in_variable = load(tmp_path, CALLBOARD_NODE_ALLOW_TOOLS_FROM=f"{KEYS[0]}, {KEYS[1]},")
    assert in_file.node.allow_tools_from == in_variable.node.allow_tools_from == KEYS
    for wrong in ("ed25519:short", KEYS[0] + "A", KEYS[0].upper()):
        with pytest.raises(ConfigError, match=r"node\.allow_tools_from"):
            load(tmp_path, CALLBOARD_NODE_ALLOW_TOOLS_FROM=wrong)
    with pytest.raises(ConfigError, match=r"node\.allow_tools_from"):
        load(tmp_path, user=f'[node]\nallow_tools_from = "{KEYS[0]}"')


def test_every_known_key_has_a_documented_default() -> None:
    assert {"nats", "server.port", "engine."} <= set(known_keys())


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20).filter(lambda k: k not in known_keys()))
def test_no_unknown_key_passes_unseen(key: str) -> None:
    if key in {"server", "engine"}:
        return
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ConfigError, match=key):
        load(Path(folder), project=f"{key} = 1")


def test_folders_come_from_the_environment_and_are_private(tmp_path: Path) -> None:
    environment = {f"CALLBOARD_{name}_DIR": str(tmp_path / name) for name in ("STATE", "DATA", "CACHE")}
    paths = Paths.find(environment=environment).create()
    assert paths.state == tmp_path / "STATE"
    for folder in (paths.state, paths.data, paths.cache, paths.runtime):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_flag_for_the_state_folder_wins(tmp_path: Path) -> None:
    paths = Paths.find(str(tmp_path / "flag"), environment={"CALLBOARD_STATE_DIR": str(tmp_path / "variable")})
    assert paths.state == tmp_path / "flag"


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/state"):
        Paths.find(environment={"CALLBOARD_STATE_DIR": str(tmp_path / "file" / "state")}).create()
