"""The flags of `callboard bench train`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...runtime.errors import UsageError
from .train_rows import PARTS, TrainOptions


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one short round: a check, not a measurement")
    parser.add_argument("--model", default="smollm2", help="a model's name or path")
    parser.add_argument("--parts", metavar="NAMES", default="", help=f"only these, by commas: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each has its turn (default: 3)")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="of a turn (default: 2)")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="of a step (default: 16)")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="of the plain trainer's batch (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same samples")
    parser.add_argument("--micro-tokens", type=int, default=0, metavar="N", help="ours at once (default: by memory)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of each process (default: as torch has)")
    parser.add_argument("--trl-python", type=Path, metavar="PATH", help="the Python that has TRL")


def chosen(args: Namespace) -> TrainOptions:
    """What the flags say. Raises UsageError, NoSuchModel, ModelDamaged."""
    from ..models.store import ModelStore

    parts = tuple(name for name in args.parts.split(",") if name) or PARTS
    if unknown := [name for name in parts if name not in PARTS]:
        raise UsageError(f"there is no part '{unknown[0]}'", hint=f"choose from {', '.join(PARTS)}")
    if min(args.rounds, args.steps, args.samples, args.rows) < 1 or min(args.threads, args.micro_tokens) < 0:
        raise UsageError("--rounds, --steps, --samples and --rows are 1 or more, the others are not negative")
    if args.samples % args.rows:
        raise UsageError(f"a step of {args.samples} samples is no whole number of batches of {args.rows}")
    if args.trl_python and not args.trl_python.is_file():
        raise UsageError(f"there is no Python {args.trl_python}", hint="--trl-python names that of a venv")
    options = TrainOptions(
        model=ModelStore().path(args.model).absolute(),
        parts=parts,
        rounds=args.rounds,
        steps=args.steps,
        samples=args.samples,
        rows=args.rows,
        seed=args.seed,
        trl_python=args.trl_python and args.trl_python.absolute(),  # no resolve: a venv's Python is a link
        micro_tokens=args.micro_tokens,
        threads=args.threads,
    )
    return options.quick() if args.quick else options
