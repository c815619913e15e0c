"""What can go wrong in a benchmark besides what it measures."""

from __future__ import annotations

from ...runtime.errors import CallboardError


class BenchFailed(CallboardError):
    """A contender, or what it needs, failed."""

    code = "bench.failed"


class ContenderFailed(BenchFailed):
    """A process that was to be measured could not be started, ended, or fell silent."""

    code = "bench.contender"


class DatasetInvalid(BenchFailed):
    """A data set that is not what it should be, or holds nothing of use."""

    code = "bench.dataset"


class AgentsFailed(BenchFailed):
    """A run that did not do what it is measured by."""

    code = "bench.agents"
