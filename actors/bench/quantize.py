"""`callboard bench quantize`: what methods of quantization lose, on one model, in one format, beside plain rounding.

SmolLM2's file lies on a grid of four bits, which plain rounding would find again. So the model that everything is
held against is taken off it first, by a random rotation of its residual stream that changes no logit.

All 4-bit figures are of groups of 128 inputs with zero points. Where a row is no multiple of that (SmolLM2's 576), its
last group is shorter, for all methods alike. Embeddings and the output matrix stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .machine import machine_facts
from .report import Report
from .sample_text import divided

if TYPE_CHECKING:
    import torch

    from ..quantize.recipe import Recipe
    from ..quantize.source import Source

RATIO = "x"
# The best of a table of methods with 4-bit weights in groups of 128, of OPT-125M on WikiText-2: OmniQuant takes its
# perplexity from 27.65 to 28.86, AWQ to 29.15, GPTQ to 29.81, plain rounding to 30.47 (Shao et al., "OmniQuant", 2023).
PUBLISHED_W4_RATIO = 28.86 / 27.65
# One documentation string in so many is held out.
HELD_OUT_EVERY = 4
METHODS_4 = ("awq", "gptq", "awq+gptq", "gptaq", "autoround")
# The one that the targets are about.
BEST = "gptaq"


@dataclass(frozen=True)
class QuantizeOptions:
    """What is measured on and what is calibrated on are documentation strings, taken from all of them in turn:
    published figures are of one text as well, of which a part is held out. `steps`: of AutoRound."""

    model: Path
    held_out_chars: int = 64_000
    calibration_chars: int = 260_000
    length: int = 256
    methods: tuple[str, ...] = METHODS_4
    seed: int = 0
    steps: int = 100

    def quick(self) -> QuantizeOptions:
        return replace(self, held_out_chars=3_000, calibration_chars=6_000, length=64, steps=10)


def run(options: QuantizeOptions, step: Callable[[str], None]) -> Report:
    """Measure all of it. Raises NoSuchModel, ModelDamaged, UnsupportedModel."""
    import torch

    from ..models.loading import load_tokenizer
    from ..quantize.recipe import Method, Recipe
    from ..quantize.rotated import RotatedSource
    from ..quantize.source import open_source

    report = Report("quantize", machine_facts("torch"))
    report.machine |= {"model": options.model.stem, "group_size": 128, "rotation_seed": options.seed}
    tokenizer = load_tokenizer(options.model)
    held_out, calibration = texts(options, tokenizer.encode)
    report.machine |= {"held_out_tokens": held_out.numel(), "calibration_tokens": calibration.numel()}
    source = RotatedSource(open_source(options.model), options.seed)
    try:
        with torch.inference_mode():
            measured = _Measured(source, calibration, held_out, report, step)
            measured.cache("full", "")
            measured.recipe("rtn4", Recipe(method=Method.RTN))
            for method in options.methods:
                measured.recipe(f"{method}4", Recipe(method=Method(method), steps=options.steps))
            measured.recipe("rtn8", Recipe(method=Method.RTN, bits=8))
            measured.recipe("smooth8", Recipe(method=Method.SMOOTH, bits=8))
            measured.cache("kv8", "int8")
            measured.cache("kv4", "int4")
    finally:
        source.close()
    add_targets(report, measured.perplexity)
    return report


def texts(options: QuantizeOptions, encode: Callable[[str], list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out and calibration tokens, each int64 [num_seqs, length], of different strings of one text."""
    import torch

    held_out, calibration = divided(HELD_OUT_EVERY)

    def cut(text: str) -> torch.Tensor:
        ids = torch.tensor(encode(text))
        return ids[: len(ids) // options.length * options.length].view(-1, options.length)

    return cut(held_out[: options.held_out_chars]), cut(calibration[: options.calibration_chars])


class _Measured:
    def __init__(
        self,
        source: Source,
        calibration: torch.Tensor,
        held_out: torch.Tensor,
        report: Report,
        step: Callable[[str], None],
    ) -> None:
        self.source = source
        self.calibration = calibration
        self.held_out = held_out
        self.report = report
        self.step = step
        self.perplexity: dict[str, float] = {}

    def cache(self, name: str, kv: str) -> None:
        """Full weights, with keys and values kept in `kv`."""
        from ..quantize.evaluate import last_hidden

        self._note(name, last_hidden(self.source, self.held_out, kv=kv, step=lambda layer: self._say(name, layer)))

    def recipe(self, name: str, recipe: Recipe) -> None:
        """Weights quantized, a layer at a time, and the held-out text taken through each as soon as it is."""
        from ..quantize.block import advance
        from ..quantize.evaluate import block_of, normed
        from ..quantize.layer import quantize_layer
        from ..quantize.recipe import Rounding, Scaling
        from ..quantize.run import embed
        from ..quantize.stream import Stream

        looks = recipe.method.scaling is not Scaling.NONE or recipe.method.rounding(recipe.bits) is not Rounding.NEAREST
        # Plain rounding looks at no input.
        text = embed(self.source, self.calibration if looks else self.calibration[:1])
        stream = Stream(text, text.clone() if recipe.wants_plain else None)
        hidden = embed(self.source, self.held_out)
        for index in range(self.source.config.num_layers):
            block = block_of(self.source.config, self.source, index)
            quantize_layer(block, stream, recipe)
            advance(block, hidden)
            self._say(name, index + 1)
        self._note(name, normed(self.source, hidden))

    def _note(self, name: str, hidden: torch.Tensor) -> None:
        from ..quantize.evaluate import head_of, negative_log_likelihood

        lost, count = negative_log_likelihood(hidden, head_of(self.source), self.held_out)
        self.perplexity[name] = math.exp(lost / count)
        self.report.add(f"perplexity.{name}", [self.perplexity[name]], "")

    def _say(self, name: str, layer: int) -> None:
        self.step(f"{name}, layer {layer} of {self.source.config.num_layers}")


def add_targets(report: Report, perplexity: dict[str, float]) -> None:
    full, rtn = perplexity["full"], perplexity["rtn4"]
    for name, value in perplexity.items():
        if name.endswith("4") and name not in ("rtn4", "kv4"):
            report.add(f"loss_over_rtn.{name}", [(value - full) / (rtn - full)], "share")
    report.add_target("int8_ppl_ratio", 1.005, RATIO, [perplexity["smooth8"] / full], at_most=True)
    best = f"{BEST}4"
    if best in perplexity:
        share = (perplexity[best] - full) / (rtn - full)
        report.add_target("w4_loss_over_rtn", 0.6, "share", [share], at_most=True)
        report.add_target("w4_ppl_ratio", round(PUBLISHED_W4_RATIO, 3), RATIO, [perplexity[best] / full], at_most=True)
    else:
        why = f"{BEST} was left out"
        report.miss_target("w4_loss_over_rtn", 0.6, "share", why, at_most=True)
        report.miss_target("w4_ppl_ratio", round(PUBLISHED_W4_RATIO, 3), RATIO, why, at_most=True)
    report.add_target("kv8_ppl_ratio", 1.003, RATIO, [perplexity["kv8"] / full], at_most=True)
    report.add_target("kv4_ppl_ratio", 1.03, RATIO, [perplexity["kv4"] / full], at_most=True)


def plot(report: Report) -> str:
    """Each way's perplexity as a bar beside the full model's."""
    from xml.sax.saxutils import escape

    bars = {name.removeprefix("perplexity."): f.value for name, f in report.results.items() if "perplexity." in name}
    most = max(bars.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="520" height="{40 + 24 * len(bars)}" font-family="sans-serif" '
        'font-size="11" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="10" y="20" font-size="13">perplexity, {escape(str(report.machine["model"]))}</text>',
    ]
    for row, (name, value) in enumerate(bars.items()):
        y = 34 + 24 * row
        parts.append(f'<text x="10" y="{y + 12}">{escape(name)}</text>')
        parts.append(f'<rect x="100" y="{y}" width="{340 * value / most:.1f}" height="16" fill="#0072b2"/>')
        parts.append(f'<text x="{106 + 340 * value / most:.1f}" y="{y + 12}">{value:.3f}</text>')
    return "\n".join([*parts, "</svg>\n"])
