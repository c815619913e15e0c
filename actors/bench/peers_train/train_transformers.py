"""transformers' own Trainer, with PEFT's LoRA or over all weights.

`python train_transformers.py FOLDER SAMPLES SETTINGS`, SETTINGS a JSON object of `precision`, `rank` (0: all weights),
`alpha`, `lr`, `samples` of a step, `rows` of a batch, and `four_bits`: QLoRA as PEFT and bitsandbytes describe it,
with activations computed again and, on a card, an optimizer in eight bits whose state moves to the host's memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames
from turns import Turns, read_samples


class Waiting(TrainerCallback):
    def __init__(self, turns: Turns, packages: tuple[str, ...]) -> None:
        self.turns = turns
        self.packages = packages
        self.tokens = 0
        self.loss = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = not self.turns.ready(self.packages)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = not self.turns.step(self.tokens, self.loss)
        self.tokens, self.loss = 0, 0.0


class Counting(Trainer):
    """Counts the tokens that it trains on, without padding."""

    waiting: Waiting

    def training_step(self, model: Any, inputs: dict[str, Any], *others: Any, **more: Any) -> torch.Tensor:
        tokens = int(inputs["attention_mask"].sum())
        loss = super().training_step(model, inputs, *others, **more)
        self.waiting.tokens += tokens
        self.waiting.loss += float(loss)
        return loss


def padded(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(sample["input_ids"]) for sample in samples)

    def rows(name: str, filling: int) -> torch.Tensor:
        return torch.tensor([sample[name] + [filling] * (width - len(sample[name])) for sample in samples])

    mask = torch.tensor([[int(at < len(sample["input_ids"])) for at in range(width)] for sample in samples])
    return {"input_ids": rows("input_ids", 0), "labels": rows("labels", -100), "attention_mask": mask}


def in_four_bits(folder: str, dtype: torch.dtype) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = 0 if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=config, device_map={"": device}
    )
    return peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})


def main() -> None:
    folder, samples, settings = sys.argv[1], read_samples(sys.argv[2]), json.loads(sys.argv[3])
    turns = Turns()
    dtype, four_bits, card = getattr(torch, settings["precision"]), settings["four_bits"], torch.cuda.is_available()
    packages = ("transformers", "peft", "torch", *(("bitsandbytes",) if four_bits else ()))
    model = in_four_bits(folder, dtype) if four_bits else AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if settings["rank"]:
        lora = peft.LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            max_steps=1_000_000,
            per_device_train_batch_size=settings["rows"],
            gradient_accumulation_steps=settings["samples"] // settings["rows"],
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            use_cpu=not card,
            bf16=four_bits,  # its norms and embeddings are in float32
            gradient_checkpointing=four_bits,
            gradient_checkpointing_kwargs={"use_reentrant": False} if four_bits else None,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        if four_bits and card:
            arguments.optim = OptimizerNames.PAGED_ADAMW_8BIT
        waiting = Waiting(turns, packages)
        trainer = Counting(model, arguments, data_collator=padded, train_dataset=samples, callbacks=[waiting])
        trainer.waiting = waiting
        trainer.train()


if __name__ == "__main__":
    main()
