"""The ways in which a processor computes what training needs, for tests that hold each against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from callboard.kernels import native_training


@pytest.fixture(params=["native", "vectors", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`vectors`: natively, as processors do that have no tiles."""
    if request.param == "torch":
        monkeypatch.setattr(native_training, "takes", lambda *tensors: False)
    elif why := native_training.unavailable():
        pytest.skip(why)
    elif request.param == "vectors":
        if not native_training.use_tiles(True):
            pytest.skip("this processor has no tiles, so this is what `native` tries")
        native_training.use_tiles(False)
    yield request.param
    if request.param == "vectors":
        native_training.use_tiles(True)
