"""The company file: what is taken, and what is said about every mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard.runtime.company_file import ActorWish, HereWish, ProcessWish, load_company, place_of
from callboard.runtime.errors import ConfigError
from callboard.runtime.placement import Here, Process

GOOD = """
[[actor]]
name = "c"
kind = "counter"
restart = "transient"

[[actor]]
name = "d"
kind = "counter"
where = "process"

[[actor]]
name = "e"
kind = "team:Clerk"
[actor.config]
desk = 4
[actor.where]
process = true
env = { LANG = "C" }
load = ["team.py"]
ready_timeout = 5
"""


def load(folder: Path, text: str) -> tuple[ActorWish, ...]:
    file = folder / "company.toml"
    file.write_text(text)
    return load_company(file)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [line.removeprefix(str(folder / "company.toml")) for line in str(caught.value).splitlines()]


def test_actors_are_read_in_their_order_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "team.py").write_text("this is not Python")  # for the actor's own process to find out
    here, process, table = load(tmp_path, GOOD)
    assert here == ActorWish(name="c", kind="counter", restart="transient", where=HereWish())
    assert (process.name, process.where) == ("d", ProcessWish())
    files = (str(tmp_path / "team.py"),)
    assert table.where == ProcessWish(env={"LANG": "C"}, load=files, ready_timeout=5.0)
    assert table.config == {"desk": 4}
    assert [place_of(wish) for wish in (here, process, table)] == [
        Here(),
        Process(),
        Process({"LANG": "C"}, files, 5.0),
    ]


def test_an_empty_file_is_an_empty_company(tmp_path: Path) -> None:
    assert load(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[actor]]\nname = "c"\nknid = "counter"', ":3: actor c: unknown key knid (did you mean kind?)"),
        ('[[actor]]\nname = "c"\nkind = "countre"', ":1: actor c: there is no actor kind named 'countre'"),
        ('[[actor]]\nkind = "counter"', ":1: actor 1: name is missing"),
        ('[[actor]]\nname = "a.b"\nkind = "counter"', ":1: actor a.b: 'a.b' is no name"),
        ('[[actor]]\nname = "node"\nkind = "counter"', ":1: actor node: 'node' is no name"),
        ('[[actor]]\nname = "c"\nkind = "counter"\nrestart = "always"', ":4: actor c: restart = 'always' does not fit"),
        ('[[actor]]\nname = "c"\nkind = "counter"\nwhere = "there"', ':4: actor c: where is "here", "process"'),
        (
            '[[actor]]\nname = "c"\nkind = "counter"\n[actor.where]\nproces = true',
            ":5: actor c: unknown key where.proces",
        ),
        (
            '[[actor]]\nname = "c"\nkind = "counter"\n[actor.where]\nprocess = false',
            ":5: actor c: where.process is true",
        ),
        (
            '[[actor]]\nname = "c"\nkind = "counter"\n[actor.where]\nprocess = true\nlaod = []',
            ":6: actor c: unknown key where.laod (did you mean load?)",
        ),
        (
            '[[actor]]\nname = "c"\nkind = "x:Y"\n[actor.where]\nprocess = true\nload = ["x.py"]',
            ":1: actor c: there is no Python file",
        ),
        (
            '[[actor]]\nname = "c"\nkind = "counter"\n[actor.config]\nstep = 1',
            ":1: actor c: the configuration of Counter",
        ),
        ('[[actors]]\nname = "c"', ":1: unknown key actors (did you mean actor?)"),
        ("actor = 4", ": actor is a list of tables"),
        ('actor = [{name = "c", kind = "countre"}]', ": actor c: there is no actor kind"),
        ("[[actor]\n", ": not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text)[0].startswith(expected)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    twice = '[[actor]]\nname = "d"\nkind = "counter"\n'
    text = f'[[actor]]\nname = "c"\nknid = 1\n{twice}{twice}'
    assert mistakes(tmp_path, text) == [
        ":3: actor c: unknown key knid (did you mean kind?)",
        ":1: actor c: kind is missing",
        ":7: there is an actor d already in line 4",
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no company file"):
        load_company(tmp_path / "company.toml")
