"""Tells the running server which users are put out. It disconnects them at once, and lets none of them in again."""

from __future__ import annotations

import msgspec

from .bus import BusOptions
from .credentials import claims_update_subject, sign_account
from .daemon_info import DaemonInfo
from .errors import BusError, CallboardError, NotReachable
from .folders import Paths
from .joining import exchange
from .ledger import Ledger
from .messages import UNDECODABLE
from .server_config import ServerFiles


class _Outcome(msgspec.Struct, frozen=True):
    code: int
    message: str = ""


class _Told(msgspec.Struct, frozen=True):
    data: _Outcome | None = None
    error: _Outcome | None = None


async def tell_server(paths: Paths, daemon: DaemonInfo) -> None:
    """Returns once the server has every revocation of the ledger. A server that starts later reads them by itself.

    Raises NotReachable, DeadlineExceeded, CallboardError where the server does not take it.
    """
    files = ServerFiles.of(paths)
    try:
        operator = files.operator_seed.read_text("ascii").strip()
        account_seed = files.account_seed.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise NotReachable(f"the server of {paths.state} has not left its keys: {error.filename}") from error
    account, claims = sign_account(operator, account_seed, Ledger.of(paths).revocations())
    options = BusOptions(daemon.url, str(files.system_creds), "system", tls=daemon.tls)
    answer = await exchange(options, claims_update_subject(account), claims.encode())
    try:
        told = msgspec.json.decode(answer, type=_Told)
    except UNDECODABLE as error:
        raise BusError(f"the server's answer is not understood: {answer[:200]!r}") from error
    outcome = told.data or told.error
    if outcome is None or outcome.code != 200:
        raise CallboardError(f"the server does not take the revocation: {outcome.message if outcome else answer!r}")
