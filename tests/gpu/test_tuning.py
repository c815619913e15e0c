"""Launch configurations timed on a card; the first one under the interpreter, which cannot time."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from callboard.kernels.gpu import launch, tuning
from callboard.kernels.gpu.tuning import Config

# A number for each program is far slower than a thousand.
SLOW, FAST = Config({"BLOCK": 1}, num_warps=1), Config({"BLOCK": 1024}, num_warps=4)
on_a_card = pytest.mark.skipif(launch.interpreted(), reason="the interpreter has nothing to time")


@triton.jit
def _double(x_ptr, out_ptr, size, BLOCK: tl.constexpr):  # pyright: ignore[reportMissingParameterType]
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, 2 * tl.load(x_ptr + place, mask=place < size), mask=place < size)


class Doubling:
    """`launches` are those of each configuration so far."""

    def __init__(self, device: torch.device) -> None:
        self.x = torch.randn(1 << 10 if launch.interpreted() else 1 << 22, device=device)
        self.out = torch.full_like(self.x, float("nan"))
        self.launches = 0

    def __call__(self, config: Config) -> None:
        self.launches += 1
        grid = (triton.cdiv(self.x.numel(), config.constants["BLOCK"]),)
        _double[grid](self.x, self.out, self.x.numel(), **config.options())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALLBOARD_CACHE_DIR", str(tmp_path))
    tuning._book.cache_clear()
    return tmp_path / "tuning"


def test_what_is_picked_can_be_launched(device: torch.device, folder: Path) -> None:
    double = Doubling(device)
    config = tuning.pick("double", (double.x.numel(),), [FAST, SLOW], double)
    double(config)
    assert torch.equal(double.out, 2 * double.x)
    assert config == FAST
    if launch.interpreted():
        assert double.launches == 1
        assert not folder.exists()


@on_a_card
def test_the_faster_one_is_found_and_the_next_process_knows_it(device: torch.device, folder: Path) -> None:
    double = Doubling(device)
    assert tuning.pick("double", (1,), [SLOW, FAST], double) == FAST
    assert double.launches > 2
    tuning._book.cache_clear()  # as in a process that has just begun
    before = double.launches
    assert tuning.pick("double", (1,), [SLOW, FAST], double) == FAST
    assert double.launches == before
    assert len(list(folder.glob("*.json"))) == 1


@on_a_card
def test_what_does_not_fit_the_card_is_passed_over(device: torch.device, folder: Path) -> None:
    double = Doubling(device)
    too_large = Config({"BLOCK": 1 << 19})

    def run(config: Config) -> None:
        if config is too_large:
            raise OutOfResources(1 << 20, 1 << 16, "shared memory")  # what a launch of such a kernel raises
        double(config)

    assert tuning.pick("double", (2,), [too_large, SLOW, FAST], run) == FAST
    with pytest.raises(OutOfResources, match="shared memory"):
        tuning.pick("double", (4,), [too_large, too_large], run)


@on_a_card
def test_nothing_is_timed_while_a_graph_is_recorded(device: torch.device, folder: Path) -> None:
    double = Doubling(device)
    double(SLOW)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        config = tuning.pick("double", (3,), [SLOW, FAST], double)
        double(config)
    assert config == SLOW
    double.out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(double.out, 2 * double.x)
    assert tuning.pick("double", (3,), [SLOW, FAST], double) == FAST
