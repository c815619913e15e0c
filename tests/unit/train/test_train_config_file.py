"""Configurations: all that a file and flags may say, and one line for what makes no sense."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.actors.train.command_options import add_options, config_of, made_up_name
from callboard.actors.train.config_checks import check_config
from callboard.actors.train.config_file import load_config
from callboard.actors.train.job_folder import checked_job_name
from callboard.runtime.errors import CallboardError, ConfigError
from callboard.schemas.train import HookSettings, LoraSettings, Method, Packing, Task, TrainConfig

WHOLE = """
model = "./base"
data = "a.jsonl:0.7,hf:org/name:0.3"
out = "adapter"
task = "dpo"
method = "qlora"
steps = 50

[lora]
rank = 8
targets = ["q_proj", "v_proj"]
dora = true

[batch]
samples = 8
packing = "sorted"

[optimizer]
lr = 1
schedule = "wsd"

[[hooks]]
kind = "mine.hooks:Save"
options = { every = 5 }
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(text)
    return path


def test_a_file_says_all_and_its_paths_are_meant_from_its_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, WHOLE))
    assert config.model == str(tmp_path / "base")
    assert config.data == f"{tmp_path / 'a.jsonl'}:0.7,hf:org/name:0.3"
    assert config.out == str(tmp_path / "adapter")
    assert (config.task, config.method, config.steps) == (Task.DPO, Method.QLORA, 50)
    assert config.lora == LoraSettings(rank=8, targets=("q_proj", "v_proj"), dora=True)
    assert (config.batch.samples, config.batch.packing) == (8, Packing.SORTED)
    assert (config.optimizer.lr, config.optimizer.schedule) == (1.0, "wsd")
    assert config.hooks == (HookSettings("mine.hooks:Save", '{"every":5}'),)
    assert config.shards == TrainConfig(model="m", data="d", out="o").shards


def test_a_configuration_is_the_same_in_a_message(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, WHOLE))
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(config), type=TrainConfig) == config


MINIMAL = 'model = "m"\ndata = "d"\nout = "o"\n'


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (MINIMAL + "[batch]\nsampels = 3", "unknown key batch.sampels", "did you mean batch.samples?"),
        (MINIMAL + "lr = 3", "unknown key lr", "did you mean optimizer.lr?"),
        (MINIMAL + "methdo = 3", "unknown key methdo", "did you mean method?"),
        (MINIMAL + "[optimiser]\nlr = 3", "unknown key optimiser", "did you mean optimizer?"),
        (MINIMAL + "lora = 3", "lora is a table", "[lora]"),
        (MINIMAL + "steps = true", "steps = True does not fit", ""),
        (MINIMAL + 'steps = "5"', "steps = '5' does not fit", ""),
        (MINIMAL + 'method = "lroa"', "method = 'lroa' does not fit: did you mean lora?", ""),
        (MINIMAL + 'task = "translate"', "it is one of sft, dpo", ""),
        (MINIMAL + '[[hooks]]\nkid = "a:B"', "unknown key hooks[0].kid", "did you mean kind?"),
        (MINIMAL + '[[hooks]]\nkind = "nothing"', "hooks[0].kind = 'nothing'", ""),
        ('model = "m"\nout = "o"', "data is not set", "flag"),
        ("model = ", "not valid TOML", ""),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(tmp_path: Path, text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert hint in error.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "setting",
    [
        "steps=-1",
        "epochs=0",
        "lora.rank=0",
        "lora.dropout=1",
        "lora.targets=[]",
        "preference.beta=0",
        "preference.label_smoothing=0.5",
        "batch.samples=0",
        "batch.max_tokens=1",
        "batch.micro_tokens=5",
        "batch.too_long=shorten",
        "batch.template=chatlm",
        "optimizer.lr=0",
        "optimizer.lr=nan",
        "optimizer.lr=inf",
        "optimizer.schedule=cosin",
        "optimizer.warmup=-1",
        "optimizer.min_lr=2",
        "optimizer.decay=0",
        "optimizer.beta1=1",
        "optimizer.ema=1",
        "optimizer.eps=0",
        "optimizer.weight_decay=-1",
        "optimizer.bits=4",
        "shards.count=0",
        "shards.zero=4",
        "shards.zero=0",
        "shards.min_count=2",
        "shards.sequence_parallel=2",
        "compute.precision=int8",
        "compute.checkpointing=some",
        "compute.device=gpu",
        "compute.threads=-1",
        "checkpoints.every=-1",
        "checkpoints.keep=0",
        "evaluation.share=1",
        "evaluation.every=5",
        "evaluation.patience=1",
        "samples.every=5",
        "guards.spike=1",
        "guards.max_skips=0",
        "trainable=lm_head",
    ],
)
def test_a_value_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("m", "--data", "d", "--out", "o", "--set", setting)
    assert setting.partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_together_are_named() -> None:
    rounding = ("--set", "optimizer.stochastic_rounding=true")
    with pytest.raises(ConfigError, match="stochastic_rounding is for bfloat16"):
        parse("m", "--data", "d", "--out", "o", *rounding, "--precision", "float32")
    with pytest.raises(ConfigError, match=r"batch\.samples = 2: fewer than shards\.count = 4"):
        parse("m", "--data", "d", "--out", "o", "--samples", "2", "--shards", "4")
    parse("m", "--data", "d", "--out", "o", "--samples", "2", "--shards", "4", "--set", "shards.sequence_parallel=2")


def test_the_defaults_are_sound() -> None:
    check_config(TrainConfig(model="m", data="d", out="o"))


# Flags


def parse(*arguments: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?")
    add_options(parser)
    return config_of(parser.parse_args(arguments))


def test_flags_win_over_the_file_and_set_over_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, WHOLE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = parse(str(file), "--out", "mine", "--lr", "1e-4", "--samples", "4", "--set", "batch.samples=6")
    assert config.out == str(tmp_path / "elsewhere" / "mine")
    assert config.model == str(tmp_path / "base")
    assert (config.optimizer.lr, config.batch.samples, config.lora.rank) == (1e-4, 6, 8)


def test_flags_alone_are_a_configuration() -> None:
    config = parse(
        *("smollm2", "--data", "hf:org/name", "--out", "/tmp/o", "--method", "full", "--frozen", "a.*,b.*"),
        *("--shards", "2", "--zero", "3", "--on", "gpu,fast", "--sample", "Hi, you", "--sample", "Bye"),
        *("--skip-bad", "--set", "lora.targets=q,v", "--set", 'samples.prompts=["x, y"]', "--set", "tensorboard=false"),
    )
    assert (config.model, config.data, config.method) == ("smollm2", "hf:org/name", Method.FULL)
    assert config.frozen == ("a.*", "b.*")
    assert (config.shards.count, config.shards.zero, config.shards.labels) == (2, 3, ("gpu", "fast"))
    assert config.samples.prompts == ("x, y",)
    assert config.batch.skip_bad
    assert not config.tensorboard
    assert config.lora.targets == ("q", "v")
    assert parse("m", "--data", "hf:a/b", "--out", "o", "--sample", "Hi, you").samples.prompts == ("Hi, you",)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to train"),
        (("m",), "data is not set"),
        (("m", "--set", "batch.samples"), "KEY=VALUE"),
        (("m", "--set", "batch.sample=2"), "unknown key batch.sample"),
        (("m", "--data", "d", "--out", "o", "--steps", "many"), "--steps: steps = 'many' does not fit"),
        (("m", "--set", "lora.targets=[1"), "not valid TOML"),
        (("m", "--data", "a:0.5,b", "--out", "o"), "has no weight"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(CallboardError) as error:
        parse(*arguments)
    assert says in str(error.value)


@pytest.mark.parametrize("out", ["adapter", "My Adapter!", "..", "x" * 100, "Ü"])
def test_a_job_gets_a_name_that_it_may_have(out: str) -> None:
    config: Any = TrainConfig(model="m", data="d", out=f"/tmp/{out}")
    assert checked_job_name(made_up_name(config)) != checked_job_name(made_up_name(config))
