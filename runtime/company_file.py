"""The company file: which actors a daemon is to run, in TOML, checked as a whole before any of it is acted upon."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from .errors import CallboardError, ConfigError
from .matching import did_you_mean
from .placement import Here, OnNode, Process, Ray, Where, configured
from .sizes import parse_size


class HereWish(msgspec.Struct, frozen=True, tag="here"):
    """`where = "here"`: in the daemon's own process."""


class ProcessWish(msgspec.Struct, frozen=True, kw_only=True, tag="process"):
    """`where = "process"`, or the table `[actor.where]` with `process = true` and what else is set for it."""

    env: dict[str, str] = {}
    load: tuple[str, ...] = ()
    ready_timeout: float = 120.0


class NodeWish(msgspec.Struct, frozen=True, kw_only=True, tag="node"):
    """The table `[actor.where]` with `node = true` and what such a node must have; `memory` as in "4GiB"."""

    labels: tuple[str, ...] = ()
    memory: str = "0"
    cpus: float = 0.0


class RayWish(msgspec.Struct, frozen=True, kw_only=True, tag="ray"):
    """The table `[actor.where]` with `ray = true` and what it is to have there; `memory` as in "4GiB"."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: str = "0"
    resources: dict[str, float] = {}
    address: str = "auto"
    env: dict[str, str] = {}
    load: tuple[str, ...] = ()
    patience: float = 15.0
    ready_timeout: float = 120.0


# Another place joins by a Struct here, the key that tells its table in `_PLACES`, and its `Where` in `place_of`.
Place = HereWish | ProcessWish | NodeWish | RayWish
_PLACES: Mapping[str, type[Place]] = {"process": ProcessWish, "node": NodeWish, "ray": RayWish}


class ActorWish(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[actor]]` of the file."""

    name: str
    kind: str
    config: dict[str, Any] = {}
    where: Place = HereWish()
    restart: Literal["permanent", "transient", "temporary"] = "permanent"

    @property
    def config_text(self) -> str:
        return msgspec.json.encode(self.config).decode()


def place_of(wish: ActorWish) -> Where:
    match wish.where:
        case HereWish():
            return Here()
        case ProcessWish(env=env, load=load, ready_timeout=ready_timeout):
            return Process(env, load, ready_timeout)
        case NodeWish(labels=labels, memory=memory, cpus=cpus):
            return OnNode(labels, parse_size(memory), cpus)
        case RayWish() as ray:
            return Ray(**{**msgspec.structs.asdict(ray), "memory": parse_size(ray.memory)})


def load_company(path: Path, allow: Sequence[str] = ()) -> tuple[ActorWish, ...]:
    """The actors that the file at `path` lists, in its order. ConfigError names every mistake in it, by line.

    A registered kind must exist, and its configuration fit it: its module is imported for that, so this blocks. `allow`
    are the modules beyond those whose classes may be named. Of a kind that a file of `load` brings, only that there is
    such a file is checked: its code is for the actor's own process.
    """
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no company file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    reader = _Reader(path, text, allow)
    wishes = reader.read(content)
    if reader.mistakes:
        raise ConfigError("\n".join(reader.mistakes), hint="nothing was started or changed")
    return wishes


@dataclass
class _Reader:
    """Gathers all mistakes of one file, so that they can be mended at once."""

    path: Path
    text: str
    allow: Sequence[str]
    mistakes: list[str] = field(default_factory=list)

    def read(self, content: dict[str, Any]) -> tuple[ActorWish, ...]:
        for key in content:
            if key != "actor":
                self._unknown(key, ["actor"], 0)
        tables = content.get("actor", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._mistake(0, "actor is a list of tables: write each as [[actor]]")
            return ()
        heads = _heads(self.text)
        if len(heads) != len(tables):  # written inline, say: then there is no line to name
            heads = [0] * len(tables)
        wishes: list[ActorWish] = []
        lines: dict[str, int] = {}
        for number, (table, head) in enumerate(zip(tables, heads, strict=True), 1):
            wish = self._actor(table, head, f"actor {table.get('name') or number}")
            if wish is None:
                continue
            if wish.name in lines:
                first = f" in line {lines[wish.name]}" if head else ""
                self._mistake(head, f"there is an actor {wish.name} already{first}")
            lines.setdefault(wish.name, head)
            wishes.append(wish)
        return tuple(wishes)

    def _actor(self, table: dict[str, Any], head: int, what: str) -> ActorWish | None:
        before = len(self.mistakes)
        place = self._place(table.get("where", "here"), head, what)
        values = self._fields(ActorWish, {**table, "where": place}, head, what)
        if len(self.mistakes) > before:
            return None
        wish = ActorWish(**values)
        try:
            self._check(wish)
        except CallboardError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._mistake(head, f"{what}: {error}{hint}")
            return None
        except Exception as error:  # the kind's module is somebody's code: it may raise anything
            self._mistake(head, f"{what}: {wish.kind} cannot be loaded: {type(error).__name__}: {error}")
            return None
        return wish

    def _check(self, wish: ActorWish) -> None:
        """Raises what starting it would raise in any case."""
        from .kinds import resolve_kind
        from .node import _RESERVED, checked_name

        if checked_name(wish.name) in _RESERVED:
            raise ConfigError(f"'{wish.name}' is no name for an actor: the runtime's own subjects begin with it")

        place_of(wish)
        loaded = wish.where.load if isinstance(wish.where, ProcessWish | RayWish) else ()
        for file in loaded:
            if not Path(file).is_file():
                raise ConfigError(f"there is no Python file {file} to load actors from")
        if wish.kind.partition(":")[0] not in [Path(file).stem for file in loaded]:
            configured(resolve_kind(wish.kind, self.allow), wish.config_text)

    def _place(self, value: Any, head: int, what: str) -> Place | None:
        if value == "here":
            return HereWish()
        if value == "process":
            return ProcessWish()
        if not isinstance(value, dict):
            self._mistake(self._line(head, "where"), f'{what}: where is "here", "process" or a table, not {value!r}')
            return None
        mark = next((key for key in _PLACES if key in value), None)
        if mark is None:
            known = [name for key, kind in _PLACES.items() for name in (key, *_names(kind))]
            for key in [key for key in value if key not in known]:
                self._unknown(key, known, head, what, "where.")
            self._mistake(self._line(head, "where"), f"{what}: where says no place: process = true, say")
            return None
        settings = {key: setting for key, setting in value.items() if key != mark}
        if value[mark] is not True:
            self._mistake(self._line(head, mark), f'{what}: where.{mark} is true, or else write where = "here"')
            return None
        values = self._fields(_PLACES[mark], settings, head, what, "where.", extra=(mark,))
        if "load" in values:
            values["load"] = tuple(
                str((self.path.parent / Path(file).expanduser()).absolute()) for file in values["load"]
            )
        if "memory" in values:
            try:
                parse_size(values["memory"])
            except ConfigError as error:
                self._mistake(self._line(head, "memory"), f"{what}: where.memory: {error}")
                return None
        return _PLACES[mark](**values)

    def _fields(
        self,
        struct: type[msgspec.Struct],
        table: dict[str, Any],
        head: int,
        what: str,
        inside: str = "",
        extra: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The table's values, each converted to its field's type; a mistake for each that does not fit."""
        values: dict[str, Any] = {}
        known = {info.name: info for info in msgspec.structs.fields(struct)}
        for key, value in table.items():
            if key not in known:
                self._unknown(key, [*known, *extra], head, what, inside)
                continue
            if isinstance(value, msgspec.Struct) or value is None:
                values[key] = value
                continue
            try:
                values[key] = msgspec.convert(value, known[key].type)
            except msgspec.ValidationError as error:
                self._mistake(self._line(head, key), f"{what}: {inside}{key} = {value!r} does not fit: {error}")
        for name, info in known.items():
            if name not in table and info.default is msgspec.NODEFAULT and info.default_factory is msgspec.NODEFAULT:
                self._mistake(head, f"{what}: {inside}{name} is missing")
        return values

    def _unknown(self, key: str, known: Sequence[str], head: int, what: str = "", inside: str = "") -> None:
        guess = did_you_mean(key, known)
        hint = f"did you mean {guess}?" if guess else "known keys: " + ", ".join(known)
        owner = f"{what}: " if what else ""
        self._mistake(self._line(head, key), f"{owner}unknown key {inside}{key} ({hint})")

    def _mistake(self, line: int, text: str) -> None:
        place = f"{self.path}:{line}" if line else str(self.path)
        self.mistakes.append(f"{place}: {text}")

    def _line(self, head: int, key: str) -> int:
        """Where `key` is set within the `[[actor]]` that begins in line `head` (0: at the top); `head` if not found."""
        wanted = re.compile(rf"""\s*\[{{0,2}}\s*(?:actor\.)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        for number, line in _numbered(self.text, head):
            if head and _HEAD.match(line):
                break
            if wanted.match(line):
                return number
        return head


_HEAD = re.compile(r"\s*\[\[\s*actor\s*\]\]")


def _heads(text: str) -> list[int]:
    return [number for number, line in _numbered(text, 0) if _HEAD.match(line)]


def _numbered(text: str, after: int) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if number > after:
            yield number, line


def _names(struct: type[msgspec.Struct]) -> list[str]:
    return [info.name for info in msgspec.structs.fields(struct)]
