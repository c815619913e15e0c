"""When a client counts as one that does not take its answer."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import pytest

from callboard.actors.gateway.connections import guarded


class Pipe:
    """A transport whose other end takes as much as a test says."""

    def __init__(self) -> None:
        self.kept = 0
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.kept += len(data)
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")

    def get_write_buffer_size(self) -> int:
        return self.kept

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
async def connection() -> Any:
    import uvicorn
    from uvicorn.server import ServerState

    config = uvicorn.Config(lambda scope: None, log_config=None)  # pyright: ignore[reportArgumentType]
    config.load()
    made: Any = guarded(60.0, 10)
    protocol = made(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(Pipe())
    return protocol


LIMIT_S = 10.0


def look(connection: Any, now: float, **options: bool) -> bool:
    connection.look_whether_taken(now, LIMIT_S, **options)
    return connection.transport.aborted


@pytest.mark.anyio
async def test_who_takes_nothing_in_time_is_given_up(connection: Any) -> None:
    assert not look(connection, 0.0)
    connection.transport.write(b"x" * 100)
    assert not look(connection, 9.9)
    assert look(connection, 10.0)


@pytest.mark.anyio
async def test_who_takes_a_little_now_and_then_is_let_be_however_much_waits(connection: Any) -> None:
    pipe = connection.transport
    pipe.write(b"x" * 100)
    assert not look(connection, 0.0)
    for now in range(9, 900, 9):
        pipe.write(b"x" * 100)  # more comes than goes
        pipe._transport.kept -= 1
        assert not look(connection, float(now))
    for now in (895, 900):  # and now it takes nothing, while more comes
        pipe.write(b"x" * 100)
        assert not look(connection, float(now))
    assert look(connection, 901.0)


@pytest.mark.anyio
async def test_who_has_nothing_to_take_may_idle(connection: Any) -> None:
    for now in range(0, 1000, 100):
        assert not look(connection, float(now))


@pytest.mark.anyio
async def test_time_in_which_the_gateway_itself_stood_still_does_not_count(connection: Any) -> None:
    connection.transport.write(b"x")
    assert not look(connection, 0.0)
    assert not look(connection, 100.0, excused=True)
    assert not look(connection, 109.0)
    assert look(connection, 110.0)


@pytest.mark.anyio
async def test_a_head_goes_with_the_first_of_its_body_or_by_itself_soon_after(connection: Any) -> None:
    outlet = connection.transport
    outlet.write(b"HTTP/1.1 200 OK\r\n\r\n")
    outlet.write(b"first")
    outlet.write(b"HTTP/1.")  # not a head: it comes in the midst of a body
    outlet.write(b"second")
    await anyio.lowlevel.checkpoint()
    outlet.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    await anyio.lowlevel.checkpoint()
    outlet.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    outlet.close()
    assert b"|".join(outlet.writes) == (
        b"HTTP/1.1 200 OK\r\n\r\nfirst|HTTP/1.second|HTTP/1.1 204 No Content\r\n\r\n"
        b"|HTTP/1.1 400 Bad Request\r\n\r\n|closed"
    )
