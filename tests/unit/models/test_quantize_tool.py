"""A model is quantized into a folder: whole or not at all, resumable, and the same numbers when it is loaded."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.loading import load_decoder
from callboard.actors.quantize.commands import quantize as command
from callboard.actors.quantize.evaluate import last_hidden
from callboard.actors.quantize.prepare import prepare
from callboard.actors.quantize.run import run
from callboard.actors.quantize.source import FolderSource, open_source
from callboard.actors.quantize.work import WorkFolder
from callboard.runtime.errors import CallboardError, ModelDamaged, UsageError
from callboard.schemas.quantize import Quantize, QuantizeProgress, QuantizeReport

SMALL = {"group_size": 16, "samples": 16, "length": 64}


def quantized(model: Path, out: Path, hear: Callable[[QuantizeProgress], None] = lambda _: None, **options: object):
    request = msgspec.convert(
        {"model": str(model), "out": str(out), "type": "quantize.run", **SMALL, **options}, Quantize
    )
    job, tokens = prepare(request)
    return run(job, tokens.calibration, tokens.held_out, hear)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rtn"},
        {"method": "gptq", "symmetric": True},
        {"method": "awq", "layout": "awq"},
        {"method": "awq+gptq", "kv": "int8"},
        {"method": "smooth", "bits": 8},
        {"method": "gptq", "bits": 8},
        {"method": "gptaq"},
        {"method": "autoround", "steps": 10},
        {"method": "autoround", "steps": 10, "symmetric": True},
    ],
    ids=str,
)
def test_the_written_model_loads_and_computes_what_its_codes_stand_for(
    tiny_path: Path, tmp_path: Path, serve: Callable[..., list[torch.Tensor]], options: dict[str, object]
) -> None:
    heard: list[QuantizeProgress] = []
    report = quantized(tiny_path, tmp_path / "out", heard.append, **options)
    assert [(one.stage, one.done) for one in heard] == [
        *(("layers", n) for n in (1, 2)),
        *(("checking", n) for n in (1, 2, 3, 4)),
    ]
    written = FolderSource(tmp_path / "out")
    decoder = load_decoder(tmp_path / "out", torch.float32)  # weights as numbers
    texts = [list(range(4, 44))]
    hidden = last_hidden(written, torch.tensor(texts))[0]
    head = decoder.head if isinstance(decoder.head, torch.Tensor) else None
    assert head is not None
    torch.testing.assert_close(serve(decoder, texts, chunk=100)[0], hidden @ head.T, rtol=1e-3, atol=1e-3)
    kept = load_decoder(tmp_path / "out", torch.float32, quantized=True)
    assert kept.weight_bytes < decoder.weight_bytes
    assert report == msgspec.json.decode((tmp_path / "out" / "report.json").read_bytes(), type=QuantizeReport)
    assert 0 < report.token_agreement <= 1
    assert report.perplexity_after > 0
    assert len(report.errors) == 8
    assert (tmp_path / "out" / "report.svg").read_text().startswith("<svg")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_eight_bits_change_little_and_gptq_loses_less_than_rounding(tiny_path: Path, tmp_path: Path) -> None:
    eight = quantized(tiny_path, tmp_path / "eight", method="smooth", bits=8)
    assert eight.perplexity_after / eight.perplexity_before == pytest.approx(1, abs=0.02)
    rtn = quantized(tiny_path, tmp_path / "rtn", method="rtn")
    gptq = quantized(tiny_path, tmp_path / "gptq", method="gptq")
    lost = [sum(error.share for error in report.errors) for report in (eight, gptq, rtn)]
    assert lost == sorted(lost)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"method": "gptaq"}, {"method": "autoround", "steps": 4}], ids=str)
def test_interrupted_work_goes_on_and_ends_in_the_same_bytes(
    tiny_path: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    def stop(progress: QuantizeProgress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        quantized(tiny_path, tmp_path / "out", stop, **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="other settings"):
        quantized(tiny_path, tmp_path / "out", **options, seed=1)  # pyright: ignore[reportArgumentType]
    heard: list[QuantizeProgress] = []
    quantized(tiny_path, tmp_path / "out", heard.append, **options)
    assert [one.done for one in heard if one.stage == "layers"] == [2]
    quantized(tiny_path, tmp_path / "unbroken", **options)  # pyright: ignore[reportArgumentType]
    for shard in (tmp_path / "out").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "unbroken" / shard.name).read_bytes()


def test_ctrl_c_says_where_the_work_lies(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkFolder, "drop_stream", interrupt)  # as a signal would, after the first layer
    parser = ArgumentParser()
    command.configure(parser)
    arguments = [str(tiny_path), "-o", str(tmp_path / "out"), "--group-size", "16", "--length", "64"]
    with pytest.raises(KeyboardInterrupt):
        command.run(parser.parse_args(arguments))
    assert str(tmp_path / ".out.quantize") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    parser = ArgumentParser()
    command.configure(parser)
    assert command.run(parser.parse_args([*arguments, "--json"])) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=QuantizeReport)
    assert report.out == str(tmp_path / "out")
    assert {error.layer for error in report.errors} == {0, 1}


def test_a_group_size_that_fits_is_found(tiny_path: Path, tmp_path: Path) -> None:
    config = open_source(tiny_path).config
    job, _ = prepare(Quantize(model=str(tiny_path), out=str(tmp_path / "out"), group_size=0, samples=2, length=16))
    size = job.recipe.group_size
    assert not any(width % size for width in (config.hidden_size, config.intermediate_size))
    assert config.hidden_size % (2 * size) or config.intermediate_size % (2 * size)


def test_nothing_is_written_where_something_is(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="there already"):
        quantized(tiny_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_size": 32}, "no multiple of 32"),
        ({"method": "smooth"}, "8 bits"),
        ({"method": "autoround", "bits": 8}, "4 bits"),
        ({"method": "autoround", "steps": 0}, "1 or more"),
        ({"method": "best"}, "no method 'best'"),
        ({"length": 1 << 20}, "tokens"),
        ({"data": "/nowhere/at-all.txt"}, "is not there"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tiny_path: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(CallboardError, match=said):
        quantized(tiny_path, tmp_path / "out", **options)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan", "cut"])
def test_a_damaged_model_is_refused_and_nothing_half_written(tiny_path: Path, tmp_path: Path, damage: str) -> None:
    folder = plain_folder(tiny_path, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    match damage:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["model.layers.1.mlp.side_proj.weight"] = tensors[name].clone()
        case "shape":
            tensors[name] = tensors[name][:-1].clone()
        case "nan":
            tensors[name][3, 5] = float("nan")
        case _:
            pass
    save_file(tensors, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelDamaged):
        quantized(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_quantized_again(tiny_path: Path, tmp_path: Path) -> None:
    quantized(tiny_path, tmp_path / "out", method="rtn")
    with pytest.raises(UnsupportedModel, match="already"):
        quantized(tmp_path / "out", tmp_path / "again")


def plain_folder(path: Path, folder: Path) -> Path:
    """The tiny model as an unquantized folder in Hugging Face's layout."""
    folder.mkdir()
    source = open_source(path)
    config = source.write_rest(folder)
    tensors = {
        name: tensor.clone()
        for layer in (None, *range(source.config.num_layers))
        for name, tensor in source.tensors(layer)
    }
    source.close()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder
