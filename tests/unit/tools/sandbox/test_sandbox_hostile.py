"""What comes out of a sandbox is hostile: files that are none, frames that are forged, snapshots that bite."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sandbox_rig import LIMITS, MakeRig, Rig
from sandbox_world import World

from callboard.actors.tools.sandbox import (
    RunResult,
    SandboxError,
    SandboxKilled,
    SessionSnapshot,
    SnapshotRefused,
)

_FRAME = """
import json, os, struct
def send(data):
    os.write(3, struct.pack('>I', len(data)) + data)
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.symlink(W['canary'], 'out.txt')", "it is a symbolic link"),
        ("import os; os.symlink('/etc', 'out')", "it is a symbolic link"),
        ("import os; os.mkdir('d'); os.symlink('../../../..' + W['canary'], 'd/out.txt')", "it is a symbolic link"),
        ("import os; os.mkfifo('out')", "it is a pipe"),
        ("with open('out', 'wb') as file: file.truncate(LARGE); file.flush()", "bytes are too many"),
        ("import os; os.close(os.open(b'a\\xff', os.O_CREAT | os.O_WRONLY))", "its name is not valid text"),
        ("open('a\\nb\\x1b[31m', 'w').close()", "its name is not valid text"),
        ("open('a\\u202etxt.exe', 'w').close()", "its name is not valid text"),
    ],
)
def test_result_that_is_no_plain_file_stays_inside(code: str, why: str, make_rig: MakeRig, world: World) -> None:
    import msgspec

    large = make_rig(msgspec.structs.replace(LIMITS, result_bytes=1 << 20))
    result = large.python(world.told(code).replace("LARGE", str(2 << 20)))
    assert result.error is None
    assert not result.files
    assert [reason for _, reason in result.left_out if why in reason]
    world.check_silent(result)
    world.check_untouched()


def test_file_under_a_link_to_a_folder_is_not_followed(rig: Rig, world: World) -> None:
    code = "import os; os.rmdir('/box/work') if not os.listdir('.') else None; os.symlink(W['private'], '/box/work')"
    result = rig.python(world.told(code))
    assert not result.files
    world.check_silent(result)


def test_names_that_lead_out_stay_below_the_results(rig: Rig) -> None:
    result = rig.python(
        "import os\nos.makedirs('a/b..')\nfor n in ('..c', 'a/b../x', 'back\\\\..\\\\x'): open(n, 'w').write(n)"
    )
    assert {file.name for file in result.files} == {"..c", "a/b../x", "back\\..\\x"}
    assert result.folder is not None
    for file in result.files:
        assert result.folder.resolve() in file.path.resolve().parents
        assert file.bytes().decode() == file.name


def test_path_that_the_host_cannot_have_is_left_out(rig: Rig) -> None:
    code = "for _ in range(20):\n    os.mkdir('x' * 250)\n    os.chdir('x' * 250)\nopen('deep', 'w').write('x')"
    result = rig.python(f"import os\nopen('flat', 'w').write('x')\n{code}")
    assert result.error is None
    assert [file.name for file in result.files] == ["flat"]
    ((name, why),) = result.left_out
    assert name.startswith("xxx")
    assert why == "File name too long"


def test_many_sparse_files_do_not_fill_the_hosts_disk(rig: Rig) -> None:
    result = rig.python("for n in range(20):\n    with open(f'f{n}', 'wb') as file: file.truncate(15 << 20)")
    assert result.error is None
    assert sum(file.size for file in result.files) <= LIMITS.result_bytes
    assert len(result.files) + len(result.left_out) == 20


def test_picture_must_be_one(rig: Rig, world: World) -> None:
    code = """
import os
os.symlink(W['canary'], '/box/out/image-1.png')
open('/box/out/image-2.png', 'w').write('<script>')
os.mkfifo('/box/out/image-3.png')
display.__self__.count = 4
"""
    result = rig.python(world.told(code))
    assert not result.images
    assert len(result.left_out) == 4
    world.check_silent(result)


@pytest.mark.parametrize(
    "frame",
    [
        "os.write(3, b'GET / HTTP/1.1\\r\\n\\r\\n')",
        "os.write(3, struct.pack('>I', 0xffffffff))",
        "os.write(3, struct.pack('>I', 5 << 20) + b'x' * 1000)",
        "send(b'')",
        "send(b'{')",
        "send(b'[]')",
        "send(b'\\xff\\xfe')",
        "send(b'[' * 1_000_000)",
        "send(json.dumps({'call': 1, 'images': 'many'}).encode())",
        "send(json.dumps({'call': 1, 'exit': 10 ** 30}).encode())",
        "send(json.dumps({'call': 1, 'value': ['x']}).encode())",
        "send(json.dumps({'call': 99}).encode())",
        "send(json.dumps({'call': -1}).encode())",
        "send(json.dumps({'event': 'ready'}).encode())",
    ],
)
def test_broken_frame_ends_the_sandbox(frame: str, rig: Rig) -> None:
    with pytest.raises(SandboxKilled) as caught:
        rig.python(f"{_FRAME}\nprint('before', flush=True)\n{frame}\nimport time; time.sleep(60)")
    assert caught.value.reason == "protocol"
    assert caught.value.stdout == "before\n"


def test_half_a_frame_keeps_nobody_waiting_beyond_the_limit(rig: Rig) -> None:
    with pytest.raises(SandboxKilled) as caught:
        rig.python("import os, time; os.write(3, b'\\0\\0\\1\\0half'); time.sleep(60)", timeout=0.5)
    assert caught.value.reason == "wall_time"


def test_forged_answer_says_no_more_than_code_could_say_anyway(rig: Rig, world: World) -> None:
    """Output, files and use are measured outside; the processes end with the answer, whoever gave it."""
    forged = "{'call': 1, 'value': 'forged', 'images': 10 ** 9}"
    began = time.monotonic()
    result = rig.python(
        f"{_FRAME}\nprint('said', flush=True)\nsend(json.dumps({forged}).encode())\nimport time; time.sleep(60)"
    )
    assert result.value == "forged"
    assert result.stdout == "said\n"
    assert not result.images
    assert result.usage.wall_s < time.monotonic() - began < LIMITS.wall_s
    world.check_untouched()


def test_forged_answer_to_the_next_call_ends_the_session(rig: Rig) -> None:
    rig.python("1", "forging")
    answers = "for n in (2, 3): send(json.dumps({'call': n, 'value': 'forged'}).encode())"
    assert rig.python(f"{_FRAME}\n{answers}", "forging").value == "forged"
    # The rest of what it wrote answers the next call, and what truly answers it the one after: numbers tell.
    outcomes = []
    for _ in range(3):
        outcome = rig.attempt("'true'", "forging")
        outcomes.append(outcome.reason if isinstance(outcome, SandboxKilled) else outcome.value)
    assert "protocol" in outcomes
    assert rig.python("'true'", "forging").value in ("'true'", "forged")
    assert rig.python("'another'", "other").value == "'another'"


def test_stolen_order_is_missed_only_by_its_own_session(rig: Rig) -> None:
    code = """
import os
if os.fork() == 0:
    while True: os.read(3, 1 << 20)
"""
    rig.python(code, "stealing")  # the child dies with the call
    assert rig.python("1 + 1", "stealing").value == "2"


def test_closed_control_socket_is_the_end_of_the_interpreter(rig: Rig) -> None:
    result = rig.python("import os; print('so far', flush=True); os.close(3)", "closing")
    assert isinstance(result, RunResult)
    assert result.session_ended
    assert result.stdout == "so far\n"
    assert rig.python("'new'", "closing").value == "'new'"


def test_flood_of_frames_fills_no_memory_of_the_host(rig: Rig) -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    outcome = rig.attempt(f"{_FRAME}\nwhile True: send(json.dumps({{'call': 1, 'value': 'x' * 4_000_000}}).encode())")
    assert isinstance(outcome, RunResult | SandboxKilled)
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_descriptors_of_the_guest_are_not_taken(rig: Rig) -> None:
    code = """
import array, os, socket
control = socket.socket(fileno=os.dup(3))
many = array.array('i', [os.open('/dev/null', 0)] * 50)
control.sendmsg([b'\\xff' * 4], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
"""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert isinstance(rig.attempt(code), SandboxKilled)
    assert len(os.listdir("/proc/self/fd")) - before < 40  # those that wait to be collected have one each


@pytest.mark.parametrize("name", ["../out/x", "/etc/x", "a/../../x", "", "a//b", ".", "a\0b"])
def test_file_cannot_be_put_elsewhere(name: str, rig: Rig) -> None:
    with pytest.raises(SandboxError, match="does not name a file"):
        rig.python("1", files={name: b"x"})


def test_file_is_not_put_through_a_link(rig: Rig, world: World) -> None:
    """A session may plant a link where the next call's file is to go."""
    rig.python(world.told("import os; os.symlink(W['canary'], 'in.txt'); os.symlink(W['private'], 'd')"), "planting")
    assert rig.python(
        "import os; os.path.islink('in.txt'), open('in.txt').read()", "planting", files={"in.txt": b"x"}
    ).value == ("(False, 'x')")
    with pytest.raises(SandboxError, match=r"d/in\.txt"):
        rig.python("1", "planting", files={"d/in.txt": b"x"})
    world.check_untouched()


def test_snapshot_that_bites_does_so_inside(rig: Rig, world: World) -> None:
    """Unpickling runs code: in the sandbox that the snapshot is restored in, and nowhere else."""
    code = world.told(
        """
class Bomb:
    def __reduce__(self):
        return (exec, (f"open({W['canary']!r}, 'w').write('x')",))
quiet = Bomb()
"""
    )
    rig.python(code, "bomb")
    snapshot = rig.portal.call(rig.box.snapshot, "bomb")
    again = SessionSnapshot.from_bytes(snapshot.to_bytes(), 1 << 24)
    lost = rig.portal.call(rig.box.restore, "bomb-2", again)
    assert "values" in dict(lost)
    world.check_untouched()


def test_snapshot_that_fills_memory_is_ended(rig: Rig) -> None:
    rig.python(
        "class Bomb:\n    def __reduce__(self): return (eval, ('bytearray(b\"x\") * (1 << 30)',))\nb = Bomb()", "big"
    )
    snapshot = rig.portal.call(rig.box.snapshot, "big")
    with pytest.raises(SandboxKilled) as caught:
        rig.portal.call(rig.box.restore, "big-2", snapshot)
    assert caught.value.reason == "memory"
    assert "big-2" not in rig.box.sessions


@pytest.mark.parametrize("data", [b"", b"\x00", b"nonsense", b"\x96\xa1x\x90\xa0\x90\x90\x09", b"\xde\xff\xff"])
def test_snapshot_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotRefused):
        SessionSnapshot.from_bytes(data, 1 << 20)


def test_snapshot_over_its_bound_is_refused() -> None:
    data = SessionSnapshot(b"x" * 1000).to_bytes()
    with pytest.raises(SnapshotRefused, match="at most 500"):
        SessionSnapshot.from_bytes(data, 500)


@pytest.mark.parametrize("state", [b"", b"\x00\x00\x00\x02{}", b"\xff\xff\xff\xff", b"\x00\x00\x00\x04null"])
def test_damaged_state_is_refused_by_the_sandbox(state: bytes, rig: Rig) -> None:
    with pytest.raises(SnapshotRefused):
        rig.portal.call(rig.box.restore, "damaged", SessionSnapshot(state))
    assert "damaged" not in rig.box.sessions


def test_snapshot_does_not_follow_links(rig: Rig, world: World) -> None:
    code = "import os; os.symlink(W['canary'], 'out.txt'); os.symlink(W['canary'], '/box/out/shell-state')"
    rig.python(world.told(code), "linking")
    snapshot = rig.portal.call(rig.box.snapshot, "linking")
    assert world.secret.encode() not in snapshot.to_bytes()


def test_state_file_that_is_a_link_is_not_read(rig: Rig, world: World) -> None:
    code = """
import os, builtins
real = open
def fake(path, mode='r', **given):
    if str(path).endswith('/out/state'):
        os.path.lexists(path) or os.symlink(W['canary'], path)
        return real('/dev/null', mode)
    return real(path, mode, **given)
builtins.open = fake
"""
    rig.python(world.told(code), "cheating")
    with pytest.raises(SandboxError, match="cannot be read"):
        rig.portal.call(rig.box.snapshot, "cheating")


def test_results_are_deleted_when_released(rig: Rig, tmp_path: Path) -> None:
    result = rig.python("open('out.txt', 'w').write('x')")
    path = result.files[0].path
    assert path.read_text() == "x"
    result.release()
    assert not path.exists()
