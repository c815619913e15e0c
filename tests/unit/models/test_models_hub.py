"""Pulling from the hubs, against a server on this machine that answers as they do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hub_site import FILES, REPO, WEIGHTS, Hub, hub

from callboard.actors.models.errors import PullFailed, UnsupportedModel
from callboard.actors.models.store import ModelStore, is_path
from callboard.runtime.errors import ModelDamaged, NoSuchModel
from callboard.schemas.models import PullProgress, PullStage

__all__ = ["hub"]  # a fixture


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def leftovers(store: ModelStore) -> list[Path]:
    return [path for path in store.root.glob(".*") if path.is_dir()]


@pytest.mark.parametrize("name", [f"hf:{REPO}", f"ms:{REPO}", f"hf:{REPO}@main"])
def test_a_model_of_a_hub_is_a_folder_of_the_store(hub: type[Hub], store: ModelStore, name: str) -> None:
    seen: list[PullProgress] = []
    model = store.pull(name, seen.append)
    folder = store.path(name)
    wanted = {file: content for file, content in FILES.items() if file.endswith(("n", "s")) and "/" not in file}
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == wanted
    assert model.files[0].name == "config.json"
    assert {file.name: file.sha256 for file in model.files} == {
        file: hashlib.sha256(content).hexdigest() for file, content in wanted.items()
    }
    assert store.installed() == [model]
    assert (model.name, model.license) == (name, "mit" if name.startswith("hf") else "")
    assert REPO in model.source
    assert seen[-1] == PullProgress(PullStage.DOWNLOAD, model.size, model.size)
    assert all(one.done <= another.done for one, another in pairwise(seen))
    assert leftovers(store) == []
    assert not is_path(name)


PIPELINE = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "everything.safetensors": b"all of it in one file, for other programs",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": b"not wanted",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"not wanted",
    "unet/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
    "unet/deeper/config.json": b"not wanted",
    "../config.json": b"never",
    "unet/..": b"never",
    "../../etc.json": b"never",
}
PIPELINE_WANTED = {
    name for name in PIPELINE if not name.startswith((".", "ev")) and PIPELINE[name] not in (b"not wanted", b"never")
}


@pytest.mark.parametrize("name", [f"hf:{REPO}", f"ms:{REPO}"])
def test_a_pipeline_of_several_models_comes_with_their_folders(hub: type[Hub], store: ModelStore, name: str) -> None:
    hub.files = dict(PIPELINE)
    model = store.pull(name)
    folder = store.path(name)
    assert folder == store.folder(name)
    assert {file.name for file in model.files} == PIPELINE_WANTED
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found["manifest.json"]
    assert found == {file: PIPELINE[file] for file in PIPELINE_WANTED}
    hub.files = {file: content for file, content in PIPELINE.items() if not file.startswith("tokenizer/")}
    store.pull(name, force=True)
    assert not (folder / "tokenizer" / "vocab.json").exists()
    assert (folder / "unet" / "config.json").exists()
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelDamaged, match=r"unet/config\.json"):
        store.path(name)


def test_a_pipeline_without_safetensors_is_refused(hub: type[Hub], store: ModelStore) -> None:
    hub.files = {name: content for name, content in PIPELINE.items() if not name.endswith("00001.safetensors")}
    with pytest.raises(UnsupportedModel, match="without safetensors"):
        store.pull(f"hf:{REPO}")


def test_a_tokenizer_comes_with_its_vocabulary(hub: type[Hub], store: ModelStore) -> None:
    hub.files = {**FILES, "source.spm": b"s", "target.spm": b"t", "spiece.model": b"m", "notes.txt": b"not wanted"}
    names = {file.name for file in store.pull(f"hf:{REPO}").files}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "source.spm", "target.spm", "spiece.model"}


def test_a_second_pull_asks_nobody_unless_forced(hub: type[Hub], store: ModelStore) -> None:
    store.pull(f"hf:{REPO}")
    asked = len(hub.tokens)
    store.pull(f"hf:{REPO}")
    assert len(hub.tokens) == asked
    hub.files = {**FILES, "config.json": b'{"model_type": "qwen2"}'}
    del hub.files["tokenizer.json"]
    store.pull(f"hf:{REPO}", force=True)
    folder = store.path(f"hf:{REPO}")
    assert (folder / "config.json").read_bytes() == b'{"model_type": "qwen2"}'
    assert not (folder / "tokenizer.json").exists(), "what the new revision lacks must not stay beside it"


def test_a_download_goes_on_where_it_broke(hub: type[Hub], store: ModelStore) -> None:
    hub.break_at = {"model.safetensors": [1 << 20, 2 << 20]}
    store.pull(f"hf:{REPO}")
    assert (store.path(f"hf:{REPO}") / "model.safetensors").read_bytes() == WEIGHTS
    asked = [wanted for name, wanted in hub.sent if name == "model.safetensors"]
    assert asked == ["", f"bytes={1 << 20}-", f"bytes={2 << 20}-"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(hub: type[Hub], store: ModelStore) -> None:
    hub.ranges = False
    hub.break_at = {"model.safetensors": [1 << 20]}
    store.pull(f"hf:{REPO}")
    assert (store.path(f"hf:{REPO}") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_pull_that_failed_goes_on_with_what_it_had(hub: type[Hub], store: ModelStore) -> None:
    hub.break_at = {"model.safetensors": [1 << 20, 1 << 20, 1 << 20, 1 << 20]}
    with pytest.raises(PullFailed, match="breaks off") as caught:
        store.pull(f"hf:{REPO}")
    assert "goes on" in caught.value.hint
    assert store.installed() == []
    with pytest.raises(NoSuchModel, match=REPO):
        store.path(f"hf:{REPO}")
    hub.break_at = {}
    hub.sent.clear()
    store.pull(f"hf:{REPO}")
    assert hub.sent == [("model.safetensors", f"bytes={1 << 20}-"), ("tokenizer.json", "")]
    assert leftovers(store) == []


KILLED_PULL = """
import sys
from pathlib import Path
from callboard.actors.models.store import ModelStore
def stand_still(progress):
    if progress.done > 1 << 20:
        print("pulling", flush=True)
        sys.stdin.read()
ModelStore(Path(sys.argv[1])).pull(sys.argv[2], stand_still)
"""


def test_a_pull_that_was_killed_goes_on_with_what_it_had(hub: type[Hub], store: ModelStore) -> None:
    command = [sys.executable, "-c", KILLED_PULL, str(store.root), f"ms:{REPO}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"pulling\n"
        killed.kill()
    assert store.installed() == []
    hub.sent.clear()
    store.pull(f"ms:{REPO}")
    assert (store.path(f"ms:{REPO}") / "model.safetensors").read_bytes() == WEIGHTS
    assert "config.json" not in [name for name, _ in hub.sent]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_content_than_the_hub_says_is_refused(hub: type[Hub], store: ModelStore, name: str) -> None:
    hub.wrong = {name: FILES[name][:-1] + b"!"}
    with pytest.raises(PullFailed, match="other content"):
        store.pull(f"hf:{REPO}")
    hub.wrong = {name: FILES[name] + b"!"}
    with pytest.raises(PullFailed, match="longer than"):
        store.pull(f"hf:{REPO}")
    hub.wrong = {}
    store.pull(f"hf:{REPO}")
    assert (store.path(f"hf:{REPO}") / name).read_bytes() == FILES[name]


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: type[Hub], store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(PullFailed, match="401") as caught:
        store.pull(f"hf:{REPO}")
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.redirect = f"http://localhost:{hub.port}"  # type: ignore[attr-defined]
    hub.tokens.clear()
    store.pull(f"hf:{REPO}")
    elsewhere = {token for path, token in hub.tokens if path.startswith("/cdn/")}
    assert elsewhere == {""}
    assert {token for path, token in hub.tokens if not path.startswith("/cdn/")} == {"Bearer hf_secret"}


def test_one_file_of_a_repository(hub: type[Hub], store: ModelStore) -> None:
    name = f"hf:{REPO}/quantized/tiny.gguf"
    store.pull(name)
    assert store.path(name).read_bytes() == FILES["quantized/tiny.gguf"]
    with pytest.raises(NoSuchModel, match="no such file") as caught:
        store.pull(f"hf:{REPO}/other.gguf")
    assert "quantized/tiny.gguf" in caught.value.hint


def test_a_repository_without_safetensors_names_its_gguf_files(hub: type[Hub], store: ModelStore) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(UnsupportedModel, match="safetensors") as caught:
        store.pull(f"hf:{REPO}")
    assert "quantized/tiny.gguf" in caught.value.hint


def test_what_is_not_there_or_not_reached_is_a_clear_error(
    hub: type[Hub], store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hf:org/none", "ms:org/none", f"hf:{REPO}@v9"):
        with pytest.raises(PullFailed, match="not there"):
            store.pull(name)
    for name in ("hf:org", "hf:", "ms:a/b/c", "hf:../etc/passwd", "hf:a/../b.gguf"):
        with pytest.raises(NoSuchModel):
            store.pull(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PullFailed, match="cannot be reached"):
        store.pull(f"hf:{REPO}")
