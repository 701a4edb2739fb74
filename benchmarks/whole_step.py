"""A training step of a whole model with the paper's experts, without LLaMA-Factory: `python -m benchmarks.whole_step`.

transformers' Trainer trains both stages on a random model and random tokens, as LLaMA-Factory would: the base frozen in
bfloat16, what is trained in float32, AdamW, gradient checkpointing. A GPU gets all of Llama-3.2-3B with the 49 experts
of Greek. What is timed, profiled and added up is that of `benchmarks.training_step`.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from transformers import Trainer, TrainingArguments

from benchmarks.models import DEVICE, EXPERTS, SHAPE, make_model
from benchmarks.results import environment, result_path
from benchmarks.training_step import Steps, as_table
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.tuner import MoeConfig

STAGES: dict[int, dict[str, Any]] = {
    1: {"aux_loss_coef": 0.01},
    2: {"train_only_router": True, "lpr_loss_coef": 0.1},
}


def make_mixture(shape: str, stage: int) -> PeftModel:
    """A model that a stage would train, what is trained in float32."""
    experts = EXPERTS[shape]
    base = make_model(shape, "bfloat16" if DEVICE == "cuda" else "float32", DEVICE, num_hidden_layers=len(experts))
    model = get_peft_model(base, MoeConfig(task_type="CAUSAL_LM", num_experts=experts, topk=2, **STAGES[stage]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def make_sequences(count: int, tokens: int, vocab_size: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, every other sequence one of an old language."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocab_size, (tokens,), generator=generator) for _ in range(count)]
    return [
        {"input_ids": row, "labels": row, "old_language_mask": torch.full((tokens,), number % 2)}
        for number, row in enumerate(rows)
    ]


def run_stage(stage: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one stage, and say what it took."""
    model = make_mixture(arguments.shape, stage)
    steps = Steps(arguments.runs, arguments.tokens)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=steps.all,
            learning_rate=1e-4,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=DEVICE == "cuda",
            use_cpu=DEVICE == "cpu",
            remove_unused_columns=False,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        data = make_sequences(steps.all, arguments.tokens, model.config.vocab_size)
        Trainer(model=model, args=settings, train_dataset=data, callbacks=[steps]).train()  # type: ignore[arg-type]
    return steps.summary(stage)


def main() -> None:
    """Measure, write the JSON after each stage and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=EXPERTS, default=SHAPE)
    parser.add_argument("--tokens", type=int, default=8192 if DEVICE == "cuda" else 512, help="tokens of a step")
    parser.add_argument("--runs", type=int, default=5, help="steps that are timed, and as many that are profiled")
    parser.add_argument("--output", type=Path, help="default: results/whole_step.json, _cuda.json with a GPU")
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    result = {**environment("accelerate"), **settings, "experts": EXPERTS[arguments.shape]}
    stages = []
    for stage in STAGES:
        stages.append(run_stage(stage, arguments))
        write_json(arguments.output or result_path("whole_step"), result | {"stages": stages})
        gc.collect()
        torch.cuda.empty_cache()
    Console().print(as_table(stages, f"{arguments.shape}, {arguments.tokens} tokens"))


if __name__ == "__main__":
    main()
