"""Task groups wrap what their tasks raise in groups; people want to read the error itself."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors themselves, depth first, out of all groups they are wrapped in. At least one."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
