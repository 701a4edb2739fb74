"""A plain transformers Trainer, with no code of this package in the program but the adapter's configuration."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LENGTHS = [12, 5, 9, 7]
OLD = [True, False, False, True]


def examples() -> list[dict[str, torch.Tensor]]:
    """Four padded sequences of uneven lengths, two of them in an old language."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, old in zip(LENGTHS, OLD, strict=True):
        input_ids = torch.randint(3, 61, (12,), generator=generator)
        attention_mask = (torch.arange(12) < length).long()
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        mask = torch.full((12,), int(old))
        rows.append(
            {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "old_language_mask": mask}
        )
    return rows


def train(folder: Path, batch_size: int, accumulation: int, **coefficients: float) -> tuple[float, dict[str, float]]:
    """One step over all four sequences: the logged loss and the tuner's metrics."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_hidden_layers=2, initializer_range=0.3, **sizes))
    config = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": 3, **coefficients}
    model = peft.get_peft_model(base, peft.get_peft_config(config))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=examples())
    trainer.train()
    return trainer.state.log_history[0]["loss"], model.base_model.pop_metrics()


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    whole, metrics = train(tmp_path, batch_size=4, accumulation=1, lpr_loss_coef=0.5)
    accumulated, accumulated_metrics = train(tmp_path, batch_size=1, accumulation=4, lpr_loss_coef=0.5)
    assert accumulated == pytest.approx(whole, abs=1e-4)
    assert accumulated_metrics == pytest.approx(metrics, abs=1e-5)


def test_a_plain_trainer_adds_the_losses(tmp_path: Path) -> None:
    plain, _ = train(tmp_path, batch_size=4, accumulation=1)
    with_losses, metrics = train(tmp_path, batch_size=4, accumulation=1, aux_loss_coef=0.3, lpr_loss_coef=0.5)
    assert with_losses == pytest.approx(plain + 0.3 * metrics["aux_loss"] + 0.5 * metrics["lpr_loss"], abs=2e-4)
