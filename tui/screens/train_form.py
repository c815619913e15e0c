"""Setting up a training run: a form over the page, with the data looked at as it is chosen."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.text import Text
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from ...runtime.errors import CallboardError, ConfigError, ModelError
from ...runtime.matching import did_you_mean
from ...schemas.train import CheckData, CheckedFile, DataChecked, Method, Task, TrainConfig
from ..ensure import ask_or_start
from ..session import Session, as_line
from ..styles import beside
from ..widgets.fill_form import FormOver
from ..widgets.safe_text import plain

TRAIN, KIND = "train", "train.jobs"
# Once somebody stops typing for so long, what they typed is looked at.
PAUSE_S = 0.4

_DEFAULTS = TrainConfig(model="", data="", out="")
SCHEMA: dict[str, Any] = {
    "required": ["model", "data", "out"],
    "properties": {
        "model": {"type": "string", "description": "a name of the store, or a path", "default": "smollm2"},
        "data": {"type": "string", "description": "file, hf:ORG/NAME or ms:ORG/NAME; several as a:0.7,b:0.3"},
        "out": {"type": "string", "description": "the folder for what comes of it"},
        "job": {"type": "string", "description": "its name; empty: one is made up"},
        "task": {"enum": [task.value for task in Task], "default": _DEFAULTS.task.value},
        "method": {"enum": [method.value for method in Method], "default": _DEFAULTS.method.value},
        "epochs": {"type": "number", "minimum": 0, "default": _DEFAULTS.epochs},
        "steps": {"type": "integer", "minimum": 0, "description": "in place of epochs, where not 0", "default": 0},
        "optimizer.lr": {"type": "number", "minimum": 0, "default": _DEFAULTS.optimizer.lr},
        "batch.samples": {"type": "integer", "minimum": 1, "default": _DEFAULTS.batch.samples},
        "batch.max_tokens": {"type": "integer", "minimum": 0, "default": _DEFAULTS.batch.max_tokens},
        "lora.rank": {"type": "integer", "minimum": 1, "default": _DEFAULTS.lora.rank},
        "samples.prompts": {"type": "array", "items": {"type": "string"}, "description": "that it answers on the way"},
        "samples.every": {"type": "integer", "minimum": 0, "description": "steps", "default": 0},
        "checkpoints.every": {"type": "integer", "minimum": 0, "default": _DEFAULTS.checkpoints.every},
        "more": {"type": "string", "format": "textarea", "description": "other settings, as in the TOML file"},
    },
}


class TrainForm(FormOver[tuple[TrainConfig, str]]):
    """Gives the configuration and the job's name."""

    DEFAULT_CSS = beside(__file__)

    def __init__(self, session: Session) -> None:
        super().__init__("A new training run", SCHEMA)
        self._session = session
        self._asked: CheckData | None = None
        self.checked: DataChecked | None = None

    def beside(self) -> Widget:
        hint = Text("the data is looked at as it is chosen", "dim")
        return VerticalScroll(Static(hint, id="check-text"), id="check")

    def result(self, values: dict[str, Any]) -> tuple[TrainConfig, str]:
        return as_config(values)

    # The data

    def changed(self) -> None:
        wanted = self._wanted()
        if wanted != self._asked:
            self._asked = wanted
            self.run_worker(self._check(wanted), group="check", exclusive=True)

    def _wanted(self) -> CheckData | None:
        form = self.form
        data = form.text_of("data").strip()
        tokens = form.text_of("batch.max_tokens").strip()
        if not data:
            return None
        return CheckData(
            data=data,
            model=form.text_of("model").strip(),
            task=Task(form.text_of("task") or Task.SFT),
            max_tokens=int(tokens) if tokens.isdecimal() else 0,
        )

    async def _check(self, wanted: CheckData | None) -> None:
        self.checked = None
        self._show(Text("", "dim"))
        if wanted is None:
            return
        await asyncio.sleep(PAUSE_S)  # the next key replaces this worker
        self._show(Text("looking …", "dim"))
        trouble = Text()
        while self.checked is None:
            try:
                self.checked = await ask_or_start(self._session, TRAIN, KIND, wanted)
            except CallboardError as error:
                trouble = plain(as_line(error) + "\n", "red")
                if not isinstance(error, ModelError):
                    self._show(trouble)
                    return
                wanted = msgspec.structs.replace(wanted, model="")  # what its data are can be said all the same
        self._show(trouble.append_text(report(self.checked)))

    def _show(self, text: Text) -> None:
        for place in self.query("#check-text").results(Static):  # none, once the form is being closed
            place.update(text)


def as_config(values: dict[str, Any]) -> tuple[TrainConfig, str]:
    """What was filled in. Raises ConfigError for what no configuration has; the trainer looks at the rest."""
    job = values.pop("job", "")
    try:
        more = tomllib.loads(values.pop("more", ""))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the other settings are no TOML: {error}") from None
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] |= value
        else:
            values[name] = value
    _check_names(values, TrainConfig, "")
    try:
        return msgspec.convert(values, TrainConfig), job
    except msgspec.ValidationError as error:
        raise ConfigError(f"this is no configuration: {error}") from None


def _check_names(values: dict[str, Any], kind: type[Any], where: str) -> None:
    """Raises ConfigError for a name that no setting has: messages leave unknown fields out, people want to know."""
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for name, value in values.items():
        if name not in known:
            guess = did_you_mean(name, list(known))
            hint = f"did you mean '{where}{guess}'?" if guess else "docs/training.md lists the settings"
            raise ConfigError(f"there is no setting '{where}{name}'", hint=hint)
        inner = known[name]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _check_names(value, inner, f"{name}.")


def report(checked: DataChecked) -> Text:
    """What was found in the data, for people."""
    text = Text()
    for file in checked.files:
        for line in _lines(file):
            text.append_text(line).append("\n")
    for name in checked.unfetched:
        text.append_text(plain(f"{name}: fetched when the run begins, not looked at\n", "yellow"))
    return text


def _lines(file: CheckedFile) -> Iterator[Text]:
    kind = f"{file.format} ({file.container})" if file.format else "unknown format"
    mark = plain("✗ ", "bold red") if file.num_bad else plain("✓ ", "bold green")
    yield mark.append_text(plain(file.file, "bold"))
    much = "all of it" if file.complete else "its beginning"
    yield plain(f"  {kind}; {file.num_records:,} records, {much}; {', '.join(file.kinds)}")
    if file.num_tokens:
        share = file.num_loss_tokens / file.num_tokens
        mean = file.num_tokens / max(1, file.num_samples)
        yield plain(f"  {file.num_tokens:,} tokens, {share:.0%} with loss, {mean:.0f} each")
    if file.num_too_long:
        yield plain(f"  {file.num_too_long:,} longer than batch.max_tokens", "yellow")
    if file.num_bad:
        yield plain(f"  {file.num_bad:,} that cannot be used:", "red")
    for problem in file.problems[:5]:
        yield plain(f"  line {problem.line}: {problem.reason}", "red")
    if file.sample:
        yield plain("  the first:", "dim")
        yield plain(file.sample)
