"""The loss over a large vocabulary, forward and backward: ours, which never holds the logits, beside PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...kernels import ops_training
from .kernels_meter import Meter
from .kernels_rows import DTYPE
from .kernels_sizes import Sizes
from .report import Report

FASTER, SMALLER = "cross_entropy_over_torch", "cross_entropy_memory_over_torch"


def measure_loss(meter: Meter, sizes: Sizes, report: Report) -> dict[str, list[float]]:
    """Reports times and memory; the ratios by the names of their targets."""
    device = meter.device
    hidden = torch.randn(sizes.loss_tokens, sizes.loss_hidden, dtype=DTYPE, device=device, requires_grad=True)
    weight = torch.randn(sizes.loss_vocab, sizes.loss_hidden, dtype=DTYPE, device=device)
    weight = weight.mul_(sizes.loss_hidden**-0.5).requires_grad_()
    targets = torch.randint(sizes.loss_vocab, (sizes.loss_tokens,), device=device)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            loss().backward()
            hidden.grad = weight.grad = None  # made anew each time, and counted in the peak

        return run

    def of_ours() -> torch.Tensor:
        total, count = ops_training.linear_cross_entropy(hidden, weight, targets)
        return total / count

    ours = step(of_ours)
    theirs = step(lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets))
    seconds = {name: meter.seconds([run], graph=False) for name, run in (("ours", ours), ("torch", theirs))}
    peaks = {name: meter.peak_bytes(run) for name, run in (("ours", ours), ("torch", theirs))}
    for name in ("ours", "torch"):
        report.add(f"cross_entropy.{name}", [1e3 * each for each in seconds[name]], "ms")
        report.add(f"cross_entropy_memory.{name}", [peaks[name] / (1 << 20)], "MiB")
    faster = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
    # What is too small for new pages leaves no trace.
    return {FASTER: faster} | ({SMALLER: [peaks["ours"] / peaks["torch"]]} if peaks["torch"] else {})
