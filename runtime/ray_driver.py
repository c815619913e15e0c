"""The main program of the process that stands for an actor on a Ray cluster: Ray's driver, and the go-between.

It takes orders and gives reports as an actor's own process does (worker.py). Its end, whatever brings it, ends the Ray
actor, since that is not a detached one, and with it the actor's process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from .errors import (
    ActorStopped,
    CallboardError,
    ConfigError,
    DeadlineExceeded,
    NoNodeFits,
    NotReachable,
    VersionMismatch,
    to_info,
)
from .frames import Over, RayOrders, Report, Stop, pack, parse_report, parse_stop, take_pipes
from .log import log
from .logfiles import FORMAT
from .ray_host import Brought, RayHost
from .sizes import format_size

# Beyond its drain time, how long the actor's process may take before this one goes, and takes it with it.
LAST_CALL_S = 12.0
# Under which Ray lists our actors.
NAMESPACE = "callboard"


class Driver:
    """One actor's life on the cluster. `report` is the descriptor that takes the reports."""

    def __init__(self, orders: RayOrders, report: int) -> None:
        self._orders = orders
        self._report = report
        self._host: Any = None
        self._ready_by = 0.0
        self._lock = threading.Lock()

    def run(self) -> int:
        """Blocks until the actor has ended. The exit code."""
        threading.Thread(target=self._until_eof, name="parent-watch", daemon=True).start()
        try:
            last = self._live()
        except CallboardError as error:
            last = _over(error)
        except Exception as error:  # Ray's: there are many, and the supervisor must hear of each
            log.error("%s: Ray failed", self._orders.start.name, exc_info=error)
            last = _over(error)
        self._say(last)
        if last.code:
            return 1
        import ray

        ray.shutdown()  # where it got as far as this, the cluster is there to take leave of
        return 0

    def _live(self) -> Over:
        ip = self._connect()
        host = self._place()
        first = self._begin(host, ip)
        if isinstance(first, Over):
            return first
        with self._lock:
            self._host = host
        self._say(first)
        last = self._ask(host.wait.remote(), None)
        assert isinstance(last, Over)
        return last

    # Steps

    def _connect(self) -> str:
        """Become a driver of the cluster. The address of this machine there."""
        # Ray tries so often, a second apart, where it is refused; whether it was it says only at the end.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
        # At a ray:// address, how long a driver that was killed is waited for before its actors end.
        os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "5")
        import ray
        import ray.util

        address = self._orders.address
        if address == "local":
            raise ConfigError("an actor is placed on a Ray cluster that is there", hint="`ray start --head` starts one")
        giving_up = threading.Timer(self._orders.connect_timeout, self._no_cluster)
        giving_up.daemon = True
        giving_up.start()
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                namespace=NAMESPACE,
            )
        except ValueError as error:
            if "ray[client]" in str(error):
                hint = 'pip install "callboard[cluster]", or HOST:PORT from a machine that is part of the cluster'
                raise ConfigError(f"{address} needs Ray's client, which is not installed", hint=hint) from error
            hint = "it is HOST:PORT, or ray://HOST:PORT from a machine that is not part of it"
            raise ConfigError(f"'{address}' is no address of a Ray cluster: {error}", hint=hint) from error
        except ConnectionError as error:
            raise _not_reachable(address, f"{error}. {error.__cause__ or ''}") from error
        except RuntimeError as error:
            if "ersion mismatch" not in str(error):
                raise
            raise VersionMismatch(f"the Ray cluster at {address} is of another release: {error}") from error
        finally:
            giving_up.cancel()
        return ray.util.get_node_ip_address()

    def _no_cluster(self) -> None:
        """Ray is still at it, and cannot be interrupted."""
        where, seconds = self._orders.address, self._orders.connect_timeout
        self._say(_over(_not_reachable(where, f"no answer within {seconds:g} s")))
        os._exit(1)

    def _place(self) -> Any:
        """The Ray actor, once it runs. Raises NoNodeFits."""
        import ray
        import ray.exceptions
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        orders = self._orders
        room = self._reserve() if self._wanted() else None
        self._ready_by = time.monotonic() + orders.ready_timeout
        as_ray_actor: Any = ray.remote
        host = (
            as_ray_actor(RayHost)
            .options(
                # For people who look at the cluster. Not the bare name: its last bearer may still be on its way out.
                name=f"{orders.start.name}.{secrets.token_hex(4)}",
                num_cpus=orders.num_cpus,
                num_gpus=orders.num_gpus,
                memory=orders.memory or None,
                resources=orders.resources or None,
                scheduling_strategy=PlacementGroupSchedulingStrategy(room, 0) if room else None,
                max_restarts=0,  # its supervisor restarts it
                max_task_retries=0,
                max_concurrency=3,
            )
            .remote()
        )
        try:
            where = ray.get(host.ip.remote(), timeout=self._left())
        except ray.exceptions.GetTimeoutError:
            raise self._not_ready() from None
        except ray.exceptions.RayError as error:
            raise ActorStopped(
                f"{orders.start.name} could not be started on the Ray cluster: {_reason(error)}",
                hint="the same release of callboard must be installed on all of its nodes",
                detail=str(error),
            ) from error
        log.info("%s is placed on the Ray node %s", orders.start.name, where)
        return host

    def _wanted(self) -> dict[str, float]:
        orders = self._orders
        wanted = {"CPU": orders.num_cpus, "GPU": orders.num_gpus, "memory": float(orders.memory), **orders.resources}
        return {name: amount for name, amount in wanted.items() if amount}

    def _reserve(self) -> Any:
        """Room on one node, kept until this driver ends: it is waited for by itself, so that a process that starts
        slowly is not taken for a cluster that is full. Raises NoNodeFits."""
        from ray.util.placement_group import placement_group

        room: Any = placement_group([self._wanted()], name=self._orders.start.name)
        if not room.wait(self._orders.patience):
            raise self._no_room()
        return room

    def _no_room(self) -> NoNodeFits:
        import ray

        orders = self._orders
        total, free = ray.cluster_resources(), ray.available_resources()
        words = [
            f"{_amount(name, amount)} (it has {_amount(name, total.get(name, 0.0), bare=True)}, "
            f"{_amount(name, free.get(name, 0.0), bare=True)} free)"
            for name, amount in self._wanted().items()
        ]
        return NoNodeFits(
            f"the Ray cluster at {orders.address} had no room for {orders.start.name} within {orders.patience:g} s: "
            f"it asks for {', '.join(words)}",
            hint="ask for less, wait longer, or add a node: `ray start --address HOST:PORT`",
        )

    def _begin(self, host: Any, ip: str) -> Report:
        from .. import __version__
        from .blob_files import host_key

        orders, start = self._orders, self._orders.start
        files = {"creds": start.creds, **msgspec.structs.asdict(start.tls)}
        ours = {name: value for name, value in os.environ.items() if name.startswith("CALLBOARD_")}
        brought = Brought(
            start=start,
            papers={name: Path(path).read_bytes() for name, path in files.items() if path},
            env=orders.env,
            host_env=ours,
            host=host_key(),
            ip=ip,
            version=__version__,
        )
        return self._ask(host.begin.remote(msgspec.msgpack.encode(brought)), self._left())

    def _ask(self, answer: Any, timeout: float | None) -> Report:
        """Raises ActorStopped where the Ray actor, its node or the cluster is gone, DeadlineExceeded."""
        import ray
        import ray.exceptions

        try:
            return parse_report(ray.get(answer, timeout=timeout))
        except ray.exceptions.GetTimeoutError:
            raise self._not_ready() from None
        except ray.exceptions.RayError as error:
            name = self._orders.start.name
            raise ActorStopped(f"the Ray actor of {name} is gone: {_reason(error)}", detail=str(error)) from error

    def _left(self) -> float:
        """Seconds that are left of the time in which the actor must be ready."""
        return max(self._ready_by - time.monotonic(), 0.0)

    def _not_ready(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._orders.start.name} was not ready within {self._orders.ready_timeout:g} s")

    # The parent

    def _until_eof(self) -> None:
        """In a thread of its own: the parent closed our stdin, or died."""
        said = b""
        while part := os.read(0, 4096):
            said += part
        stop = parse_stop(said) or Stop(self._orders.start.drain_timeout)
        with self._lock:
            host = self._host
        if host is None:
            os._exit(1)  # it has not begun, so it has nothing to finish
        killer = threading.Timer(stop.drain_timeout + LAST_CALL_S, os._exit, (1,))
        killer.daemon = True
        killer.start()
        host.stop.remote(stop.drain_timeout)

    def _say(self, report: Report) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody is there to take it
            os.write(self._report, pack(report))


def _over(error: Exception) -> Over:
    info = to_info(error)
    return Over(info.code, info.message, info.hint, info.detail)


def _not_reachable(address: str, why: str) -> NotReachable:
    if "AuthToken" in why:
        return NotReachable(
            f"the Ray cluster at {address} does not let this process in: it wants its token",
            hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, where the daemon is started",
            detail=why,
        )
    where = "on this machine" if address == "auto" else f"at {address}"
    return NotReachable(
        f"there is no Ray cluster {where}: {why.partition('. ')[0]}",
        hint="`ray start --head` starts one; RAY_ADDRESS, or the address of the place, names another",
        detail=why,
    )


def _reason(error: Exception) -> str:
    """Ray's own word for it, without the pages that it adds."""
    text = str(error)
    _, mark, said = text.partition("because ")
    lines = (said if mark else text).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".:")


def _amount(name: str, amount: float, *, bare: bool = False) -> str:
    text = format_size(int(amount)) if name == "memory" else f"{amount:g}"
    return text if bare else f"{text} {name}"


def main() -> int:
    try:
        orders, report = take_pipes(RayOrders)
    except EOFError:
        return 1
    logging.basicConfig(level=orders.start.log_level.upper(), format=FORMAT, stream=sys.stderr)
    return Driver(orders, report).run()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Ray's threads must not hold up the end of a process that has nothing left to do.
    os._exit(code)
