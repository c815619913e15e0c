"""The process that forks sandboxes: a small interpreter, loaded once, that no code of others ever runs in.

    host -- starts --> zygote -- forks --> [keeper -- forks --> warden -- forks --> guest]

A program of its own, `python -I -m callboard.actors.tools.sandbox.zygote DESCRIPTOR`, with an environment that holds
nothing of the host's. It has one thread, since only such a process can enter a user namespace, and forks safely.

The keeper enters the namespaces and waits; the warden is the first process in them, builds the file system, gives up
every capability and guards (warden.py); the guest gives up the rest and runs what it is sent (inside.py). Each dies
with the one before it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from . import frames, inside, interpreter, landlock, linux, mounts, namespaces, seccomp
from .family import Family
from .parts import Part
from .warden import Warden


class Plan(NamedTuple):
    """What every sandbox of this zygote is like; the host's configuration, in plain values."""

    parts: list[str]
    landlock_abi: int
    read: list[str]
    aliases: list[tuple[str, str]]
    preload: list[str]
    environment: dict[str, str]
    scratch_bytes: int
    scratch_files: int
    file_bytes: int
    address_space: int
    open_files: int
    processes: int
    folders: list[str]
    links: list[tuple[str, str]]

    def has(self, part: Part) -> bool:
        return part in self.parts


class Order(NamedTuple):
    """One sandbox. The descriptors came with it. `scratch`: the folder where there is no mount namespace."""

    guest: int
    warden: int
    stdout: int
    stderr: int
    scratch: str


def serve(host: socket.socket) -> None:
    """Fork a sandbox for each order, until the host is gone."""
    plan = Plan(**frames.receive(host), folders=interpreter.folders(), links=interpreter.links())
    filter_code = (
        seccomp.program(linux.MACHINE, own_files=plan.has(Part.MOUNT_NAMESPACE)) if plan.has(Part.SECCOMP) else b""
    )
    for name in plan.preload:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) != 1:
        raise SystemExit(f"one of {', '.join(plan.preload)} starts threads when it is imported: it cannot be preloaded")
    shift = None
    if os.geteuid() == 0 and plan.has(Part.USER_NAMESPACE) and plan.has(Part.MOUNT_NAMESPACE):
        with contextlib.suppress(OSError):  # mounts.py goes without
            shift = namespaces.owner_shift()
    gc.collect()
    gc.freeze()  # else the first collection of each guest copies all of this
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for: the host holds a pidfd of each
    while True:
        head, descriptors, _, _ = socket.recv_fds(host, frames.LENGTH.size, 4)
        if not head:
            return
        if len(head) < frames.LENGTH.size:
            head += host.recv(frames.LENGTH.size - len(head), socket.MSG_WAITALL)
        (length,) = frames.LENGTH.unpack(head)
        scratch: str = frames.json.loads(host.recv(length, socket.MSG_WAITALL))["scratch"]
        _start(host, plan, Order(*descriptors, scratch=scratch), filter_code, shift)


def _start(host: socket.socket, plan: Plan, order: Order, filter_code: bytes, owner_shift: int | None) -> None:
    zygote = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        host.close()
        _run(lambda: keep(plan, order, filter_code, owner_shift, zygote), order.warden)
    _introduce(keeper, order.warden)
    for descriptor in (order.guest, order.warden, order.stdout, order.stderr):
        os.close(descriptor)


def _introduce(keeper: int, warden_socket: int) -> None:
    """Give the host hold of the keeper, on the socket that the warden speaks on too."""
    with contextlib.suppress(OSError):  # the keeper failed already and has said why, or the host is gone
        handle = os.pidfd_open(keeper)
        with socket.socket(fileno=os.dup(warden_socket)) as host:
            socket.send_fds(host, [frames.pack({"event": "keeper"})], [handle])
        os.close(handle)


def _run(work: Callable[[], object], warden_socket: int) -> NoReturn:
    """A forked process's whole life: it never returns into its parent's code."""
    status = 70
    try:
        work()
        status = 0
    except BaseException as error:
        with contextlib.suppress(OSError), socket.socket(fileno=warden_socket) as host:
            host.sendall(frames.pack({"event": "failed", "error": str(error), "detail": traceback.format_exc()}))
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # 0: it is outside of our pid namespace
        os._exit(0)


def keep(plan: Plan, order: Order, filter_code: bytes, owner_shift: int | None, zygote: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    own_mounts = plan.has(Part.MOUNT_NAMESPACE)
    held = mounts.Held()
    shown = [*plan.folders, *plan.read, *mounts.DEVICES]
    host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if own_mounts and os.geteuid() == 0:  # without its mounts, nobody could not read root's own interpreter
        held.take(shown, owner_shift)
        shown = []
        namespaces.become_nobody()
    if plan.has(Part.USER_NAMESPACE):
        namespaces.enter([Part(name) for name in plan.parts])
    if own_mounts:
        held.take(shown)
    if not plan.has(Part.PID_NAMESPACE):
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    _die_with(zygote)
    keeper = os.pidfd_open(os.getpid())
    warden = os.fork()
    if warden == 0:
        _run(lambda: ward(plan, order, filter_code, held, host_proc, keeper), order.warden)
    linux.close_from(0)
    linux.clear_capabilities()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.waitpid(warden, 0)
    if not plan.has(Part.PID_NAMESPACE):  # whom the warden left behind is ours now
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        Family(proc, translate=False).end_all_but(0)


def ward(plan: Plan, order: Order, filter_code: bytes, held: mounts.Held, host_proc: int, keeper: int) -> None:
    parts = [Part(name) for name in plan.parts]
    if plan.has(Part.IPC_NAMESPACE):
        linux.sethostname(b"sandbox")
    if plan.has(Part.MOUNT_NAMESPACE):
        place = mounts.BOX
        scratch = mounts.build(held, [*plan.links, *plan.aliases], parts, plan.scratch_bytes, plan.scratch_files)
    else:
        place = order.scratch
        scratch = mounts.open_scratch(place)
    if plan.has(Part.PRIVATE_PROC):
        os.close(host_proc)
        host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if plan.has(Part.USER_NAMESPACE):
        linux.drop_capabilities()
    else:
        linux.clear_capabilities()
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([keeper], [], [], 0)[0]:  # it has ended already: from within its namespace no pid says so
        os._exit(0)
    os.close(keeper)
    if filter_code:
        seccomp.install(filter_code)
    warden = os.getpid()
    guest = os.fork()
    if guest == 0:
        _run(lambda: enter(plan, order, place, warden), order.warden)
    for descriptor in (order.guest, order.stdout, order.stderr):
        os.close(descriptor)
    with socket.socket(fileno=order.warden) as host:
        socket.send_fds(host, [frames.pack({"event": "ready"})], [scratch])
        family = Family(host_proc, translate=plan.has(Part.PID_NAMESPACE) and not plan.has(Part.PRIVATE_PROC))
        Warden(host, family, scratch).guard(guest)


def enter(plan: Plan, order: Order, place: str, warden: int) -> None:
    """The guest: give up the rest, then do as the host says."""
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    os.setsid()
    _die_with(warden)
    os.umask(0o077)
    nothing = os.open("/dev/null", os.O_RDONLY)
    # First out of the way of each other, then to their places.
    moved = [os.dup2(one, 100 + index) for index, one in enumerate((nothing, order.stdout, order.stderr, order.guest))]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=number < 3)
    linux.close_from(4)
    os.environ.clear()
    os.environ.update(environment(plan, place))
    os.chdir(f"{place}/work")
    _set_limits(plan)
    if plan.landlock_abi:
        landlock.restrict(rules(plan, place), plan.landlock_abi)
    inside.main(socket.socket(fileno=3), place)


def rules(plan: Plan, place: str) -> list[tuple[str, int]]:
    found = [(path, landlock.RUN) for path in plan.folders]
    found += [(path, landlock.READ) for path in plan.read]
    found += [(path, landlock.DEVICE) for path in mounts.DEVICES]
    found += [(place, landlock.write_rights(plan.landlock_abi))]
    if plan.has(Part.PRIVATE_PROC):
        found += [("/proc", landlock.READ)]
    if plan.has(Part.MOUNT_NAMESPACE):
        found += [("/", landlock.LIST), ("/tmp", landlock.write_rights(plan.landlock_abi))]
    return found


def environment(plan: Plan, place: str) -> dict[str, str]:
    private = f"{place}/tmp"
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": private,
        "TMPDIR": private,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": private,
        # Each process is given about one processor; a pool of threads counts against the limit on processes.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **plan.environment,
    }


def _set_limits(plan: Plan) -> None:
    bounds: list[tuple[int, int]] = [
        (resource.RLIMIT_AS, plan.address_space),
        (resource.RLIMIT_FSIZE, plan.file_bytes),
        (resource.RLIMIT_NOFILE, plan.open_files),
        # 1, not 0: with 0 the kernel still starts the program that core_pattern names (core(5)).
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 1024),
        (resource.RLIMIT_RTPRIO, 0),
    ]
    if plan.has(Part.USER_NAMESPACE):
        # Counted within the namespace, where the keeper and the warden live too.
        bounds.append((resource.RLIMIT_NPROC, plan.processes + 2))
    for which, bound in bounds:
        _, most = resource.getrlimit(which)
        bound = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(which, (bound, bound))


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as host:
        host.set_inheritable(False)
        serve(host)


if __name__ == "__main__":
    main()
