"""The flags of `callboard train`: common settings by name, any other by --set, over what a file says."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import ConfigError

if TYPE_CHECKING:
    from ...schemas.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Flag:
    """`key`: the setting that it stands for."""

    name: str
    key: str
    metavar: str
    help: str


_GROUPS: dict[str, tuple[Flag, ...]] = {
    "what is trained": (
        Flag("--data", "data", "DATA", "a file, hf:ORG/NAME, or several as A:0.7,B:0.3 (`callboard data check`)"),
        Flag("--out", "out", "FOLDER", "what comes of it"),
        Flag("--task", "task", "TASK", "sft, dpo, orpo, simpo, kto or reward (default: sft)"),
        Flag("--method", "method", "METHOD", "full, lora or qlora (default: lora)"),
        Flag("--rank", "lora.rank", "R", "of LoRA matrices (default: 16)"),
        Flag("--alpha", "lora.alpha", "A", "LoRA's scale times its rank (default: 32)"),
        Flag("--trainable", "trainable", "PATTERNS", "with full: train these parameters alone"),
        Flag("--frozen", "frozen", "PATTERNS", "with full: all but these"),
    ),
    "how": (
        Flag("--lr", "optimizer.lr", "LR", "the learning rate (default: 2e-4)"),
        Flag("--schedule", "optimizer.schedule", "NAME", "constant, linear, cosine or wsd (default: cosine)"),
        Flag("--steps", "steps", "N", "optimizer steps (default: as many as the epochs take)"),
        Flag("--epochs", "epochs", "N", "passes over the data (default: 1)"),
        Flag("--samples", "batch.samples", "N", "of one step (default: 16)"),
        Flag("--max-tokens", "batch.max_tokens", "N", "of one sample (default: 1024; 0: the model's context)"),
        Flag("--micro-tokens", "batch.micro_tokens", "N", "that go through at once (default: by the memory)"),
        Flag("--template", "batch.template", "NAME", "chatml or alpaca, in place of the model's own"),
        Flag("--seed", "seed", "N", "the same seed trains the same weights"),
        Flag("--precision", "compute.precision", "NAME", "auto, float32, bfloat16 or float16"),
        Flag("--device", "compute.device", "NAME", "auto, cpu or cuda"),
    ),
    "shards": (
        Flag("--shards", "shards.count", "N", "processes that share the work (default: 1)"),
        Flag("--zero", "shards.zero", "Z", "1: they share optimizer state, 2: gradients too, 3: parameters too"),
        Flag("--on", "shards.labels", "LABELS", "on nodes that have these (default: on this machine)"),
        Flag("--min-shards", "shards.min_count", "N", "go on with so many when a node does not come back"),
    ),
    "on the way": (
        Flag("--checkpoint-every", "checkpoints.every", "N", "steps (default: 100)"),
        Flag("--eval-data", "evaluation.data", "DATA", "what to evaluate on"),
        Flag("--eval-every", "evaluation.every", "N", "steps (default: not)"),
        Flag("--sample", "samples.prompts", "PROMPT", "have the model answer this now and then; repeatable"),
        Flag("--sample-every", "samples.every", "N", "steps (default: not)"),
    ),
}
_REPEATABLE = ("--sample",)


def add_options(parser: ArgumentParser) -> None:
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            action = "append" if flag.name in _REPEATABLE else "store"
            group.add_argument(
                flag.name, dest=flag.key, metavar=flag.metavar, help=flag.help, action=action, default=None
            )
    other = parser.add_argument_group("all else")
    other.add_argument("--skip-bad", dest="batch.skip_bad", action="store_true", default=None,
                       help="leave out records that cannot be used, and count them")  # fmt: skip
    other.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
                       help="any setting by its key, lora.dora=true say; repeatable")  # fmt: skip


def config_of(args: Namespace) -> TrainConfig:
    """The configuration that a command line means. Raises ConfigError."""
    from .config_file import build, from_flag, parse_setting, read_file

    given = {}
    if args.what is not None and args.what.endswith(".toml"):
        given.update(read_file(Path(args.what)))
    elif args.what is not None:
        given["model"] = from_flag(args.what, "MODEL")
    for flag, value in _set_flags(args):
        given[flag.key] = from_flag(value, flag.name)
    if getattr(args, "batch.skip_bad"):
        given["batch.skip_bad"] = from_flag(True, "--skip-bad")
    given.update(map(parse_setting, args.settings))
    if not given:
        raise ConfigError("there is nothing to train", hint="give a configuration, or a model with --data and --out")
    return build(given)


def has_settings(args: Namespace) -> bool:
    """Whether the command line says anything about what to train."""
    return bool(args.what or args.settings or getattr(args, "batch.skip_bad") or _set_flags(args))


def _set_flags(args: Namespace) -> list[tuple[Flag, Any]]:
    flags = [flag for group in _GROUPS.values() for flag in group]
    return [(flag, value) for flag in flags if (value := getattr(args, flag.key)) is not None]


def made_up_name(config: TrainConfig) -> str:
    """A job's name that nobody else takes: asked again after an answer that was lost, it is the same job."""
    import re

    base = re.sub(r"[^a-z0-9]+", "-", Path(config.out).name.lower()).strip("-")[:28] or "job"
    return f"{base}-{secrets.token_hex(3)}"
