"""What comes of a run says how it was made: a README with the settings, as model hubs show it."""

from __future__ import annotations

import msgspec

from ...schemas.train import Method, TrainConfig


def model_card(config: TrainConfig, steps: int, best: float | None) -> str:
    """Markdown, with the front matter that hubs read."""
    library = "transformers" if config.method is Method.FULL else "peft"
    front = ["---", f"library_name: {library}", "tags: [callboard]", "---"]
    rows = [
        ("base model", config.model),
        ("data", config.data),
        ("task", config.task.value),
        ("method", config.method.value),
        ("optimizer steps", f"{steps:,}"),
        ("samples a step", f"{config.batch.samples:,}"),
        *([("evaluation loss", f"{best:.4f}")] if best is not None else []),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    settings = msgspec.json.format(msgspec.json.encode(config)).decode()
    return "\n".join(
        [
            *front,
            "",
            f"# A fine-tune of {config.model}",
            "",
            *table,
            "",
            "## Settings",
            "",
            "```json",
            settings,
            "```",
            "",
        ]
    )
