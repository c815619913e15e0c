"""What comes of a run says how it was made: a README as model hubs show it, and the loss as a picture beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ...runtime.plot import Chart, Series, svg
from ...schemas.models import FineTuneResults
from ...schemas.train import Method, Task, TrainConfig
from ..data.mixture import parse_sources
from .base_facts import BaseFacts
from .run_history import RunHistory, thinned

README = "README.md"
CURVE = "loss.svg"
# Points of a curve at most: more would hide the line, and each is the mean of its stretch.
_MAX_POINTS = 50
# Names that the Hugging Face hub takes as they are; any other license is `other` there, and named beside it.
_HUB_LICENSES = """
    apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0
    openrail openrail++ bigscience-bloom-rail-1.0 bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unlicense unknown
"""
_HUB_DATA = re.compile(r"hf:([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Run:
    """What a run came to. `num_samples`: of the data that it learned from; `num_held_out`: that it was evaluated on.
    `best`: the lowest evaluation loss."""

    steps: int
    num_samples: int
    num_held_out: int
    history: RunHistory
    best: float | None = None


def card_files(config: TrainConfig, run: Run, base: BaseFacts) -> dict[str, str]:
    """The files of the card: the name of each and its text."""
    files = {README: model_card(config, run, base)}
    if run.history.losses:
        files[CURVE] = loss_curve(config.model, run)
    return files


def model_card(config: TrainConfig, run: Run, base: BaseFacts) -> str:
    """Markdown, with the front matter that hubs read."""
    parts = [
        _front_matter(config, base),
        f"# A fine-tune of {config.model}",
        _what_it_is(config),
        "## Use",
        _use(config, base),
        "## Training",
        _table(_training_rows(config, run, base)),
        *([f"![Loss over the steps]({CURVE})"] if run.history.losses else []),
        "## Data",
        _table(_data_rows(config, run)),
        "## Settings",
        f"```json\n{msgspec.json.format(msgspec.json.encode(config)).decode()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def results_of(config: TrainConfig, run: Run) -> FineTuneResults:
    """The card's figures, for programs."""
    return FineTuneResults(
        base=config.model,
        task=config.task.value,
        method=config.method.value,
        steps=run.steps,
        training_loss=_last_loss(run),
        evaluation_loss=run.best,
        samples=run.num_samples,
        evaluated_on=run.num_held_out,
        tokens=run.history.num_tokens,
    )


def loss_curve(title: str, run: Run) -> str:
    """An SVG of the training loss, and of the evaluation's where there was one."""
    series = [Series("training", tuple(thinned(run.history.losses, _MAX_POINTS)))]
    if run.history.evaluations:
        series.append(Series("evaluation", tuple(run.history.evaluations)))
    return svg([Chart("loss", "step", tuple(series))], title)


def merged_card(base: str, adapter: str, facts: BaseFacts) -> str:
    """The README of a model that an adapter was merged into."""
    front = ["---", "library_name: transformers", *_base_lines(facts, "merge"), "tags:", "- callboard", "---"]
    says = f"{base} with the adapter {adapter} merged into its weights by `callboard merge`. It needs no PEFT."
    return "\n".join(front) + f"\n\n# A fine-tune of {base}\n\n{says}\n"


def _front_matter(config: TrainConfig, base: BaseFacts) -> str:
    is_full, is_reward = config.method is Method.FULL, config.task is Task.REWARD
    datasets = dict.fromkeys(_HUB_DATA.findall(" ".join(source.name for source in parse_sources(config.data))))
    lines = [
        f"library_name: {'transformers' if is_full else 'peft'}",
        f"pipeline_tag: {'text-classification' if is_reward else 'text-generation'}",
        *_base_lines(base, "finetune" if is_full else "adapter"),
        *(["datasets:", *(f"- {name}" for name in datasets)] if datasets else []),
        "tags:",
        "- callboard",
        f"- {config.method.value}",
        f"- {config.task.value}",
    ]
    return "\n".join(["---", *lines, "---"])


def _base_lines(base: BaseFacts, relation: str) -> list[str]:
    """Only names of the hub: it refuses a card that names another base."""
    lines = [f"base_model: {base.hub}", f"base_model_relation: {relation}"] if base.hub else []
    if base.license:
        name = re.sub(r"[^\w.+-]", "-", base.license.lower())
        lines += [f"license: {name}"] if name in _HUB_LICENSES.split() else ["license: other", f"license_name: {name}"]
    return lines


_TASKS = {
    Task.SFT: "next tokens, where the data says so",
    Task.DPO: "preferences (DPO)",
    Task.ORPO: "preferences (ORPO)",
    Task.SIMPO: "preferences (SimPO)",
    Task.KTO: "preferences (KTO)",
    Task.REWARD: "a reward for each text, from preferences",
}


def _what_it_is(config: TrainConfig) -> str:
    what = {
        Method.FULL: "All its weights were trained.",
        Method.LORA: "This is a LoRA adapter in PEFT's format: the base model is needed beside it.",
        Method.QLORA: "This is a LoRA adapter in PEFT's format, trained over the base in four bits (NF4): the base "
        "model is needed beside it.",
    }[config.method]
    if config.method is Method.FULL and (config.trainable or config.frozen):
        what = "A part of its weights was trained."
    return f"{what} It learned {_TASKS[config.task]}."


def _use(config: TrainConfig, base: BaseFacts) -> str:
    out = shlex.quote(config.out)
    kind = "AutoModelForSequenceClassification" if config.task is Task.REWARD else "AutoModelForCausalLM"
    if config.method is Method.FULL:
        python = [
            f"from transformers import AutoTokenizer, {kind}",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({config.out!r})",
            f"model = {kind}.from_pretrained({config.out!r})",
        ]
        shell = [f"callboard chat --model {out}", f"callboard export {out} --to gguf --type q8_0 -o model.gguf"]
    else:
        source = base.hub or config.model
        labels = ", num_labels=1" if config.task is Task.REWARD else ""
        python = [
            "from peft import PeftModel",
            f"from transformers import AutoTokenizer, {kind}",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({source!r})",
            f"model = {kind}.from_pretrained({source!r}{labels})",
            f"model = PeftModel.from_pretrained(model, {config.out!r})",
        ]
        shell = [f"callboard merge {shlex.quote(config.model)} {out} -o merged"]
        if not config.lora.dora:  # an engine adds low-rank products, and DoRA is more than that
            shell = [f"callboard adapter load mine {out}", "callboard chat --adapter mine", *shell]
    if config.task is Task.REWARD:
        return _fenced("python", python)
    return f"{_fenced('python', python)}\n\n{_fenced('', shell)}"


def _fenced(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _training_rows(config: TrainConfig, run: Run, base: BaseFacts) -> list[tuple[str, str]]:
    lora, optimizer = config.lora, config.optimizer
    kinds = [name for name, is_on in (("DoRA", lora.dora), ("rsLoRA", lora.rslora)) if is_on]
    adapter = f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    loss = _last_loss(run)
    return [
        ("base model", config.model),
        *([("its license", base.license)] if base.license else []),
        ("task", config.task.value),
        ("method", ", ".join([config.method.value, *kinds])),
        *([("adapter", adapter)] if config.method is not Method.FULL else []),
        ("optimizer steps", f"{run.steps:,}"),
        ("samples a step", f"{config.batch.samples:,}"),
        ("learning rate", f"{optimizer.lr:g}, {optimizer.schedule}"),
        ("shards", f"{config.shards.count}, ZeRO-{config.shards.zero}"),
        ("seed", str(config.seed)),
        *([("training loss at the end", f"{loss:.4f}")] if loss is not None else []),
        *([("best evaluation loss", f"{run.best:.4f}")] if run.best is not None else []),
    ]


def _last_loss(run: Run) -> float | None:
    last = run.history.losses[-_MAX_POINTS:]
    return sum(loss for _, loss in last) / len(last) if last else None


def _data_rows(config: TrainConfig, run: Run) -> list[tuple[str, str]]:
    sources = parse_sources(config.data)
    weights = [f"{source.name}, weight {source.weight:g}" if source.weight else source.name for source in sources]
    return [
        *(("source", name) for name in weights),
        ("samples", f"{run.num_samples:,}"),
        *([("samples evaluated on", f"{run.num_held_out:,}")] if run.num_held_out else []),
        ("tokens trained on", f"{run.history.num_tokens:,}"),
        ("of these with loss", f"{run.history.num_loss_tokens:,}"),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    escaped = [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in escaped)])
