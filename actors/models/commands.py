"""`callboard pull` and `callboard models`: the model store from a terminal."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_json_option

if TYPE_CHECKING:
    from ...schemas.models import InstalledModel, PullProgress
    from .sources import Progress
    from .store import ModelStore


def _configure_pull(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name",
        help="a known model's name, smollm2 say; or hf:ORG/NAME[@REVISION] of the Hugging Face hub, ms:ORG/NAME of "
        "ModelScope, hf:ORG/NAME/FILE.gguf for one file",
    )
    parser.add_argument("--force", action="store_true", help="fetch it again, although it is there")
    add_json_option(parser)


def _pull(args: Namespace) -> int:
    import msgspec

    from .store import ModelStore

    store = ModelStore()
    with _progress(args.name) as progress:
        model = store.pull(args.name, progress, force=args.force)
    path = store.path(model.name)
    if args.json:
        print(msgspec.json.encode({**msgspec.to_builtins(model), "path": str(path)}).decode())
    else:
        print(path)
    return 0


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """A bar on standard error while something is fetched, if somebody is there to see it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name)

        def show(progress: PullProgress) -> None:
            bar.update(task, description=f"{name}: {progress.stage}", completed=progress.done, total=progress.total)

        yield show


pull = Command("fetch a model into the store", _configure_pull, _pull)


def _configure_models(parser: ArgumentParser) -> None:
    add_json_option(parser)


def _models(args: Namespace) -> int:
    import msgspec

    from .store import KNOWN, ModelStore

    store = ModelStore()
    installed = store.installed()
    if args.json:
        print(msgspec.json.encode([_described(store, model) for model in installed]).decode())
        return 0
    rows = [("NAME", "SIZE", "LICENSE", "DESCRIPTION")]
    rows += [(model.name, f"{model.size / 1e6:,.0f} MB", model.license, model.description) for model in installed]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    missing = sorted(set(KNOWN) - {model.name for model in installed})
    if missing:
        print(f"to be had with `callboard pull NAME`: {', '.join(missing)}", file=sys.stderr)
    return 0


def _described(store: ModelStore, model: InstalledModel) -> dict[str, object]:
    import msgspec

    return {**msgspec.to_builtins(model), "size": model.size, "folder": str(store.folder(model.name))}


models = Command("list the models in the store", _configure_models, _models)
