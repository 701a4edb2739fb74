"""What is added to the model's loss, when, and what is refused."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.inputs import real_tokens
from tuner.tiny import tiny_model


def moe_model(num_experts: int | list[int] = 3, **options: object) -> PeftModel:
    torch.manual_seed(7)
    return get_peft_model(tiny_model(), MoeConfig(task_type="CAUSAL_LM", num_experts=num_experts, topk=2, **options))


GROUPS = {"old_num_experts": [2, 3, 2], "group_nums": [3, 0, 3]}


@pytest.mark.parametrize(
    "coefficients",
    [
        {"aux_loss_coef": 0.3},
        {"lpr_loss_coef": 0.2},
        {"classify_loss_coef": 0.4},
        {"sequential_add_loss_coef": 0.5},
        {},
    ],
)
def test_each_coefficient_works_alone(coefficients: dict[str, float], batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(**GROUPS, **coefficients).train()
    loss = model(**batch, group_tags=torch.tensor([[0] * 9, [2] * 9])).loss
    metrics = model.base_model.pop_metrics()
    expected = metrics["lm_loss"] + sum(
        coefficient * metrics[name.removesuffix("_coef")] for name, coefficient in coefficients.items()
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    names = {"aux_loss", "lpr_loss", "classify_loss", "sequential_add_loss"}
    assert names & metrics.keys() == {name.removesuffix("_coef") for name in coefficients}


def test_evaluation_adds_nothing(batch: dict[str, torch.Tensor]) -> None:
    plain = tiny_model()(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    model = moe_model(aux_loss_coef=0.3, lpr_loss_coef=0.2).eval()
    assert model(**batch).loss.item() == pytest.approx(plain.item(), abs=1e-5)
    with model.base_model.routing_shares():
        assert model(**batch).loss.item() == pytest.approx(plain.item(), abs=1e-5)
    assert model.base_model.pop_metrics() == {}


def test_a_tuple_of_outputs_has_the_whole_loss(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(aux_loss_coef=0.3).train()
    expected, outputs = model(**batch), model(**batch, return_dict=False)
    assert isinstance(outputs, tuple)
    assert torch.equal(outputs[0], expected.loss)
    assert torch.equal(outputs[1], expected.logits)


def test_an_adapter_per_sample_is_refused(batch: dict[str, torch.Tensor]) -> None:
    model, names = moe_model(), ["default", "__base__"]
    for call in (model, model.get_base_model(), model.generate):
        with pytest.raises(ValueError, match=r"adapter_names gives each sample .*call set_adapter\(name\)"):
            call(input_ids=batch["input_ids"], adapter_names=names)


def test_losses_reach_the_model_under_peft_too(batch: dict[str, torch.Tensor]) -> None:
    """A PeftModel without a task type, and programs that unwrap it, call the base model directly."""
    model = moe_model(aux_loss_coef=0.3).train()
    assert model.get_base_model()(**batch).loss.item() == pytest.approx(model(**batch).loss.item())


def test_micro_batches_are_weighted_by_their_share_of_the_items(batch: dict[str, torch.Tensor]) -> None:
    """As under gradient accumulation: the trainer passes the item count of all micro-batches."""
    model = moe_model(aux_loss_coef=0.3, lpr_loss_coef=0.2).train()
    total = (batch["labels"] != -100).sum()
    losses, expected = [], torch.zeros(())
    for row in range(2):
        micro = {name: value[row : row + 1] for name, value in batch.items()}
        losses.append(model(**micro, num_items_in_batch=total).loss)
        metrics = model.base_model.pop_metrics()
        items = (micro["labels"] != -100).sum()
        labelled = items - 1  # the LM loss predicts all but the first token, the trainer counts them all
        alone = model(**micro).loss
        lm = model.base_model.pop_metrics()["lm_loss"]
        mixture = 0.3 * metrics["aux_loss"] + 0.2 * metrics.get("lpr_loss", 0.0)
        assert alone.item() == pytest.approx(lm + mixture, abs=1e-5)
        expected = expected + lm * labelled / total + mixture * items / total
    assert sum(losses).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_batch_without_old_tokens_has_no_lpr_loss(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(lpr_loss_coef=0.2).train()
    batch["old_language_mask"] = torch.zeros_like(batch["old_language_mask"])
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(model.base_model.pop_metrics()["lm_loss"], abs=1e-6)


def test_padding_is_never_old_language(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(lpr_loss_coef=0.2).train()
    batch["old_language_mask"] = batch["attention_mask"].clone()
    masked = model(**batch).loss.item()
    batch["old_language_mask"] = torch.ones_like(batch["attention_mask"])
    assert model(**batch).loss.item() == pytest.approx(masked, abs=1e-7)


def test_lpr_training_draws_old_tokens_to_expert_0(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(lpr_loss_coef=1.0, train_only_router=True).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.base_model.pop_metrics()
    model(**batch)
    metrics = model.base_model.pop_metrics()
    assert metrics["lpr_loss"] < 0.1
    assert all(metrics[f"expert0_share_old/layer_{layer}"] == 1.0 for layer in range(3))


def test_checkpointing_keeps_losses_and_gradients(batch: dict[str, torch.Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = moe_model(aux_loss_coef=0.3, lpr_loss_coef=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = model(**batch).loss
        loss.backward()
        gradients.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("coefficient", ["aux_loss_coef", "lpr_loss_coef"])
def test_reentrant_checkpointing_is_refused(coefficient: str, batch: dict[str, torch.Tensor]) -> None:
    model = moe_model(**{coefficient: 0.1}).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match=rf"{coefficient} is set.*no gradient.*use_reentrant"):
        model(**batch)


@pytest.mark.parametrize(
    ("coefficient", "message"),
    [
        ("classify_loss_coef", r"classify_loss_coef is set.*no group_tags"),
        ("sequential_add_loss_coef", r"sequential_add_loss_coef is set.*neither target_experts.*nor group_tags"),
    ],
)
def test_losses_without_their_input_are_refused(coefficient: str, message: str, batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        moe_model(**GROUPS, **{coefficient: 0.1}).train()(**batch)


def test_tags_that_do_not_fit_are_refused(batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="group_tags names group 3, but group_nums gives a layer 3"):
        moe_model(**GROUPS, classify_loss_coef=0.1).train()(**batch, group_tags=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"needs target_experts, or group_tags of \(batch, sequence\)"):
        moe_model(sequential_add_loss_coef=0.1).train()(**batch, group_tags=torch.tensor([0, 1]))


def test_lpr_without_a_mask_is_refused(batch: dict[str, torch.Tensor]) -> None:
    del batch["old_language_mask"]
    with pytest.raises(ValueError, match=r"lpr_loss_coef is set.*old_language_mask"):
        moe_model(lpr_loss_coef=0.1).train()(**batch)


def test_a_loss_with_nothing_to_add_to_is_refused(batch: dict[str, torch.Tensor]) -> None:
    del batch["labels"]
    with pytest.raises(ValueError, match=r"aux_loss_coef is set.*no loss to add to"):
        moe_model(aux_loss_coef=0.1).train()(**batch)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_padding_of_packed_sequences_is_no_token(dtype: torch.dtype) -> None:
    """Two sequences in one row, then padding, as a block-diagonal causal mask."""
    packed = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 3, 3, 3, 0]])
    visible = (packed[:, :, None] == packed[:, None, :]) & (packed[:, None, :] > 0)
    visible &= torch.ones(7, 7, dtype=torch.bool).tril()
    mask = visible[:, None]
    if dtype != torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    expected = (packed > 0).flatten()
    found = real_tokens(mask)
    assert found is not None
    assert torch.equal(found, expected)


def test_routing_shares_count_real_tokens(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model([1, 2, 4]).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), model.base_model.routing_shares() as shares:
        for row in range(2):
            model(**{name: value[row : row + 1] for name, value in inputs.items()})
    assert [(layer, len(share)) for layer, share in shares.items()] == [(1, 2), (2, 4)]
    for share in shares.values():
        assert share.sum().item() == pytest.approx(1.0)
        torch.testing.assert_close(share * 15, (share * 15).round())


def test_logged_shares_are_those_of_the_real_tokens(batch: dict[str, torch.Tensor]) -> None:
    model = moe_model([1, 2, 4]).train()
    with model.base_model.routing_shares() as shares:
        model(**batch)
    first = {name: value[:1] for name, value in batch.items()}
    with model.base_model.routing_shares() as old_shares:
        metrics = model.base_model.pop_metrics()
        model(**first)
    for layer in (1, 2):
        assert metrics[f"expert0_share/layer_{layer}"] == pytest.approx(shares[layer][0].item())
        assert metrics[f"expert0_share_old/layer_{layer}"] == pytest.approx(old_shares[layer][0].item())
