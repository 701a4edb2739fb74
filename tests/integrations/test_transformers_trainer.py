"""A plain transformers Trainer, with no code of this package in the program but the adapter's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LENGTHS = [12, 5, 9, 7]
OLD = [True, False, False, True]
GROUPS = [0, 1, -100, 1]
EXTRA = {"old_num_experts": 2, "group_nums": 2}
COEFFICIENTS = ("aux_loss_coef", "lpr_loss_coef", "classify_loss_coef", "sequential_add_loss_coef")


def examples() -> list[dict[str, torch.Tensor]]:
    """Four padded sequences of uneven lengths, of old and new languages, one without a group."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, old, group in zip(LENGTHS, OLD, GROUPS, strict=True):
        input_ids = torch.randint(3, 61, (12,), generator=generator)
        attention_mask = (torch.arange(12) < length).long()
        rows.append(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "labels": input_ids.masked_fill(attention_mask == 0, -100),
                "old_language_mask": torch.full((12,), int(old)),
                "group_tags": torch.full((12,), group),
            }
        )
    return rows


def make_trainer(
    folder: Path,
    batch_size: int,
    accumulation: int,
    label_smoothing: float = 0.0,
    loss_function: Any = None,
    **options: float,
) -> Trainer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_hidden_layers=2, initializer_range=0.3, **sizes))
    config = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": 3, **EXTRA, **options}
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
        max_grad_norm=0.0,
        label_smoothing_factor=label_smoothing,
    )
    return Trainer(model=model, args=arguments, train_dataset=examples(), compute_loss_func=loss_function)


def train(folder: Path, batch_size: int, accumulation: int, **options: Any) -> tuple[float, dict[str, float]]:
    """One step over all four sequences: the logged loss and the tuner's metrics."""
    trainer = make_trainer(folder, batch_size, accumulation, **options)
    trainer.train()
    return trainer.state.log_history[0]["loss"], trainer.model.base_model.pop_metrics()


def summed_gradients(folder: Path, batch_size: int, **options: float) -> dict[str, torch.Tensor]:
    """Gradients of the sum of the step's losses, as the trainer prepares and computes them."""
    trainer = make_trainer(folder, batch_size, 4 // batch_size, **options)
    batches = iter(trainer.get_train_dataloader())
    micro_batches, num_items = trainer.get_batch_samples(batches, 4 // batch_size, torch.device("cpu"))
    trainer.model.train()
    for inputs in micro_batches:
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=num_items).backward()
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("coefficient", [None, *COEFFICIENTS])
def test_accumulated_micro_batches_equal_one_batch(coefficient: str | None, tmp_path: Path) -> None:
    options = {} if coefficient is None else {coefficient: 0.5, "aux_loss_per_sequence": True}
    whole, metrics = train(tmp_path, batch_size=4, accumulation=1, **options)
    accumulated, accumulated_metrics = train(tmp_path, batch_size=1, accumulation=4, **options)
    assert accumulated == pytest.approx(whole, abs=1e-4)
    assert accumulated_metrics == pytest.approx(metrics, abs=1e-5)
    assert coefficient is None or metrics[coefficient.removesuffix("_coef")] > 0
    expected = summed_gradients(tmp_path, batch_size=4, **options)
    for batch_size in (1, 2):
        for name, gradient in summed_gradients(tmp_path, batch_size, **options).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_published_balance_loss_is_of_each_micro_batch(tmp_path: Path) -> None:
    """It multiplies means over a batch, so that no scaling makes parts of a batch equal to the whole."""
    _, whole = train(tmp_path, batch_size=4, accumulation=1, aux_loss_coef=0.5)
    _, accumulated = train(tmp_path, batch_size=1, accumulation=4, aux_loss_coef=0.5)
    assert accumulated["aux_loss"] != pytest.approx(whole["aux_loss"], abs=1e-4)
    assert accumulated["aux_loss"] == pytest.approx(whole["aux_loss"], rel=0.1)


def test_a_plain_trainer_adds_the_losses(tmp_path: Path) -> None:
    plain, _ = train(tmp_path, batch_size=4, accumulation=1)
    for coefficient in COEFFICIENTS:
        with_loss, metrics = train(tmp_path, batch_size=4, accumulation=1, **{coefficient: 0.5})
        added = 0.5 * metrics[coefficient.removesuffix("_coef")]
        assert with_loss == pytest.approx(plain + added, abs=2e-4), coefficient


class LossFromLogits(Trainer):
    """A trainer that ignores the model's own loss."""

    def compute_loss(self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_with_a_loss_of_its_own_adds_them_too(tmp_path: Path) -> None:
    losses = []
    for options in ({}, {"aux_loss_coef": 0.5}):
        trainer = make_trainer(tmp_path, 4, 1, **options)
        own = LossFromLogits(model=trainer.model, args=trainer.args, train_dataset=trainer.train_dataset)
        own.train()
        losses.append(own.state.log_history[0]["loss"])
    aux_loss = own.model.base_model.pop_metrics()["aux_loss"]
    assert losses[1] == pytest.approx(losses[0] + 0.5 * aux_loss, abs=2e-4)


def half_the_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss function of the user's, for which the trainer keeps the labels from the model."""
    logits, targets = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return 0.5 * torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("own_loss", [{"label_smoothing": 0.2}, {"loss_function": half_the_loss}])
def test_the_losses_are_added_where_the_model_gets_no_labels(own_loss: dict[str, Any], tmp_path: Path) -> None:
    alone, metrics = train(tmp_path, batch_size=2, accumulation=2, **own_loss)
    assert not any(name.endswith("_loss") for name in metrics)
    for coefficient in COEFFICIENTS:
        loss, metrics = train(tmp_path, batch_size=2, accumulation=2, **own_loss, **{coefficient: 0.5})
        added = 0.5 * metrics[coefficient.removesuffix("_coef")]
        assert loss == pytest.approx(alone + added, abs=2e-4), coefficient
