"""TRL's SFTTrainer with packing, and PEFT's LoRA.

`python train_trl.py FOLDER SAMPLES SETTINGS`, SETTINGS a JSON object of `precision`, `rank`, `alpha`, `lr`,
`row_tokens` of a packed row and `rows` of a step, one at a time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import peft
import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from train_transformers import Waiting
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]
from turns import Turns, read_samples


class Counting(SFTTrainer):
    """Counts the tokens that it trains on, without padding."""

    waiting: Waiting

    def training_step(self, model: Any, inputs: dict[str, Any], *others: Any, **more: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        loss = super().training_step(model, inputs, *others, **more)
        self.waiting.tokens += tokens
        self.waiting.loss += float(loss)
        return loss


def main() -> None:
    folder, samples, settings = sys.argv[1], read_samples(sys.argv[2]), json.loads(sys.argv[3])
    turns = Turns()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings["precision"]))
    lora = peft.LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    data = Dataset.from_list(
        [
            {
                "input_ids": sample["input_ids"],
                "completion_mask": [int(label != -100) for label in sample["labels"]],
            }
            for sample in samples
        ]
    )
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            max_steps=1_000_000,
            packing=True,
            max_length=settings["row_tokens"],
            completion_only_loss=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=settings["rows"],
            gradient_checkpointing=False,
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        waiting = Waiting(turns, ("trl", "transformers", "peft", "torch"))
        trainer = Counting(
            model,
            arguments,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=lora,
            callbacks=[waiting],
        )
        trainer.waiting = waiting
        trainer.train()


if __name__ == "__main__":
    main()
