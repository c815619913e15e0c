"""Evaluates one model as `hf` and through a gateway.

Run as `use_lm_eval.py URL MODEL FOLDER PACKAGES`: MODEL is a folder, FOLDER gets the tasks, PACKAGES is where torch and
transformers lie. The last line printed is what was found, JSON.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

URL, MODEL, FOLDER, PACKAGES = sys.argv[1:]
sys.path.append(PACKAGES)

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

NUM_SAMPLES = 12
MAX_TOKENS = 12
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: MAX, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
"""
COMPLETIONS, CHAT = "local-completions", "local-chat-completions"


def write_tasks(folder: Path) -> None:
    rng = random.Random(5)
    words = ["stage", "actor", "a cue", "the mask", "prop", "déjà vu", "act 2", "curtain", "light"]
    docs: list[dict[str, Any]] = []
    for number in range(NUM_SAMPLES):
        choices = rng.sample(words, 4)
        question = f"Question {number}: {' '.join(rng.sample(words, rng.randint(1, 5)))}?\nAnswer:"
        docs.append({"question": question, "choices": choices, "gold": rng.randrange(4)})
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        text = text.replace("DATA", str(folder / "data.jsonl")).replace("MAX", str(MAX_TOKENS))
        (folder / f"{name}.yaml").write_text(text)


def evaluated(kind: str, model_args: dict[str, Any], tasks: list[str], *, chat: bool = False) -> dict[str, Any]:
    """Figures and every sample's answers, by task."""
    done = lm_eval.simple_evaluate(
        model=kind,
        model_args=model_args,
        tasks=tasks,
        task_manager=TaskManager(include_path=FOLDER, include_defaults=False),
        batch_size=model_args.pop("batch_size", 1),
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert done is not None
    found: dict[str, Any] = {}
    for task in tasks:
        figures = {name.partition(",")[0]: value for name, value in done["results"][task].items() if ",none" in name}
        samples = sorted(done["samples"][task], key=lambda sample: sample["doc_id"])
        found[task] = {
            "figures": {name: value for name, value in figures.items() if "stderr" not in name},
            "answers": [sample["filtered_resps"] for sample in samples],
        }
    return found


def main() -> None:
    write_tasks(Path(FOLDER))
    hf = {"pretrained": MODEL, "dtype": "float32", "device": "cpu"}
    api = {"model": MODEL, "tokenizer": MODEL, "tokenizer_backend": "huggingface", "max_length": 512}
    completions = {**api, "base_url": f"{URL}/v1/completions"}
    both = ["local_choice", "local_write"]
    found = {
        "hf": evaluated("hf", hf, both),
        "tokens": evaluated(COMPLETIONS, {**completions, "num_concurrent": 4}, both),
        "batches": evaluated(COMPLETIONS, {**completions, "batch_size": 8}, both),
        "texts": evaluated(COMPLETIONS, {**completions, "tokenized_requests": False}, both),
        "hf chat": evaluated("hf", {**hf}, ["local_write"], chat=True),
        "chat": evaluated(
            CHAT,
            {"model": MODEL, "base_url": f"{URL}/v1/chat/completions", "num_concurrent": 4, "max_length": 512},
            ["local_write"],
            chat=True,
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
