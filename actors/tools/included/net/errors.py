"""Why a fetch came to nothing."""

from __future__ import annotations

from ...errors import ToolError


class FetchFailed(ToolError):
    """The address does not answer, or not with what was asked for."""

    code = "tool.fetch"


class FetchRefused(FetchFailed):
    """The request was not sent: it would have gone where requests of this tool may not go."""

    code = "tool.fetch_refused"
