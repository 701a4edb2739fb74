"""Language groups: a classifier per layer restricts routing, masked to real tokens and decided at prefill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from neuronmoe_plugins.tuner.checkpoint import to_file
from neuronmoe_plugins.tuner.routing import ForwardPass
from tuner.language_groups import decided_groups, fix_groups, grouped_model, mixture_layers, prompts
from tuner.tiny import GROUPS, logits, moe_config, randomised, tiny_model


def force_group(model: torch.nn.Module, group: int) -> None:
    """Make every classifier choose `group`, or the last that it knows."""
    for layer in mixture_layers(model):
        known = min(group, layer.plans["default"].num_groups - 1)
        fix_groups(layer, lambda states, known=known: torch.full((len(states),), known))


def dense_layer(layer: MoeLayer, hidden_states: torch.Tensor, mask: torch.Tensor, topk: int) -> torch.Tensor:
    """The layer's output, sequence by sequence and token by token, as the published code defines it."""
    plan = layer.plans["default"]
    router = torch.cat([router.weight for router in layer._routers("default")])
    experts = list(layer._experts(layer._stacks("default")).runs())
    rows = []
    for states, real in zip(hidden_states, mask, strict=True):
        group = int((layer.moe_token_classify["default"].weight @ states[real.bool()].sum(dim=0)).argmax())
        allowed = [1, plan.num_old_experts, plan.num_experts][min(group, 2)]
        tokens = []
        for state in states:
            if group == 0:
                tokens.append(layer.base_layer(state.unsqueeze(0))[0])
                continue
            probabilities = torch.softmax(router @ state, dim=-1)[:allowed]
            best = probabilities.topk(min(topk, allowed)).indices
            weights = probabilities[best] / (probabilities[best].sum() if topk > 1 else 1)
            tokens.append(
                sum(w * experts[e](state.unsqueeze(0))[0] for w, e in zip(weights, best.tolist(), strict=True))
            )
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize("layer_index", [0, 1])
def test_output_is_that_of_the_definition(topk: int, layer_index: int) -> None:
    layer = mixture_layers(grouped_model(topk=topk))[layer_index]
    hidden_states = torch.randn(24, 7, 16, generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(7) < torch.randint(1, 8, (24, 1), generator=torch.Generator().manual_seed(4))).long()
    layer.context.start(ForwardPass(attention_mask=mask))
    with torch.no_grad():
        output = layer(hidden_states)
        groups = layer.context.current.groups[layer.layer_index, "default"]
        torch.testing.assert_close(output, dense_layer(layer, hidden_states, mask, topk), atol=1e-5, rtol=1e-5)
    assert set(groups.tolist()) == set(range(layer.plans["default"].num_groups))


def test_group_0_is_the_base_and_the_last_is_everything(batch: dict[str, torch.Tensor]) -> None:
    model = grouped_model()
    unrestricted = get_peft_model(tiny_model(), moe_config(num_experts=GROUPS["num_experts"]))
    unrestricted.load_state_dict(to_file(model.state_dict()), strict=False)
    force_group(model, 0)
    assert torch.equal(logits(model, batch), logits(tiny_model(), batch))
    force_group(model, 2)
    torch.testing.assert_close(logits(model, batch), logits(unrestricted, batch))


def test_padding_takes_no_part(batch: dict[str, torch.Tensor]) -> None:
    """Each sequence alone, without padding, is in the group that it is in within the padded batch."""
    model = grouped_model()
    together = logits(model, batch)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        alone = {name: batch[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
        torch.testing.assert_close(logits(model, alone)[0], together[row, :length], atol=1e-5, rtol=0)


def test_the_groups_differ_and_would_change_while_generating() -> None:
    """Otherwise the tests below could not fail."""
    model, input_ids = grouped_model(), prompts()
    groups = decided_groups(model, input_ids)
    assert all(len(set(row.tolist())) > 1 for row in groups)
    assert not torch.equal(decided_groups(model, input_ids[:, -1:]), groups)


def test_a_mask_that_does_not_tell_padding_is_refused(batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"group_nums needs an attention_mask of \(batch, sequence\).*\(2, 1, 9, 9\)"):
        grouped_model()(input_ids=batch["input_ids"], attention_mask=torch.zeros(2, 1, 9, 9))


def test_classifiers_train_by_their_own_loss_alone(batch: dict[str, torch.Tensor]) -> None:
    batch = batch | {"group_tags": torch.tensor([0, 1])}
    del batch["old_language_mask"]
    for coefficient in (None, 1.0):
        model = grouped_model(classify_loss_coef=coefficient).train()
        model(**batch).loss.backward()
        for layer in mixture_layers(model):
            weight = layer.moe_token_classify["default"].weight
            assert weight.requires_grad == (weight.grad is not None) == (coefficient is not None)


def test_training_teaches_the_groups() -> None:
    input_ids = prompts(12)
    tags = torch.arange(12) % 2
    input_ids[:, 0] = 3 + tags
    model = grouped_model(classify_loss_coef=1.0, train_only_router=True).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=input_ids, group_tags=tags).loss.backward()
        optimizer.step()
    assert (decided_groups(model.eval(), input_ids) == tags).float().mean() > 0.9


def test_checkpointing_recomputes_with_the_same_groups(batch: dict[str, torch.Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = grouped_model(classify_loss_coef=0.5, aux_loss_coef=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        model(**inputs, group_tags=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, msg=name)


def test_classifiers_are_saved_and_added_in_a_second_stage(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    first = randomised(get_peft_model(tiny_model(), moe_config(num_experts=[4, 1, 3])))
    first.save_pretrained(tmp_path / "first")
    options = GROUPS | {"old_num_experts": [4, 1, 3], "classify_loss_coef": 0.1}
    config = MoeConfig(task_type="CAUSAL_LM", train_only_router=True, **options)
    second = PeftModel.from_pretrained(tiny_model(), tmp_path / "first", config=config, is_trainable=True)
    trainable = {name.split(".mlp.")[1] for name, p in second.named_parameters() if p.requires_grad}
    assert trainable == {"moe_router.default.weight", "moe_token_classify.default.weight"}
    second.save_pretrained(tmp_path / "second")
    shapes = {n: t.shape for n, t in load_file(tmp_path / "second" / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.mlp.moe_token_classify.weight"] == (3, 16)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "second")
    assert torch.equal(logits(loaded, batch), logits(second, batch))
    with pytest.raises(ValueError, match=r"lacks .*moe_token_classify"):
        PeftModel.from_pretrained(tiny_model(), tmp_path / "first", config=MoeConfig(task_type="CAUSAL_LM", **GROUPS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_nums": 1, "old_num_experts": 2}, "group_nums must be 0 .* or at least 2"),
        ({"group_nums": 2}, "group_nums needs old_num_experts"),
        ({"classify_loss_coef": 0.1}, "classify_loss_coef has no classifier to train: set group_nums"),
        ({"group_nums": [2, 0], "old_num_experts": 2}, "group_nums has 2 entries"),
        ({"num_experts": [1, 2, 2], "group_nums": [2, 0, 0], "old_num_experts": 1}, "layers that stay dense"),
        ({"adapter_dtype": "float33"}, "adapter_dtype must name a dtype"),
        ({"sequential_add_loss_coef": -1.0}, "sequential_add_loss_coef must not be negative"),
        # As a file written by hand may have them; "false" would be true.
        ({"aux_loss_coef": "0.1"}, "aux_loss_coef must be a number; got '0.1'"),
        ({"aux_loss_coef": True}, "aux_loss_coef must be a number; got True"),
        ({"train_only_router": "false"}, "train_only_router must be true or false; got 'false'"),
        ({"topk": "2"}, "topk must be an integer of at least 1; got '2'"),
        ({"topk": [2]}, r"topk must be an integer of at least 1; got \[2\]"),
        ({"adapter_dtype": 32}, "adapter_dtype must be a string; got 32"),
        ({"expert_rank": 4, "lora_alpha": "8"}, "lora_alpha must be above 0 and needs expert_rank; got '8'"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_model(), moe_config(**{"num_experts": 3} | options))
