"""Adding experts for a further language: what was learned stays, bit by bit, and what is added trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from neuronmoe_plugins.tuner import MoeConfig
from tuner.tiny import logits, moe_config, randomised, tiny_model

OLD, EXTENDED = [3, 1, 2], [4, 3, 2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def old_adapter(tmp_path: Path) -> Path:
    """A trained adapter of two mixtures."""
    folder = tmp_path / "old"
    randomised(get_peft_model(tiny_model(), moe_config(num_experts=OLD))).save_pretrained(folder)
    return folder


def extend(folder: Path, low_cpu_mem_usage: bool = False, **options: object) -> PeftModel:
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=EXTENDED, old_num_experts=OLD, **options)
    return PeftModel.from_pretrained(
        tiny_model(), folder, config=config, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    )


def train(model: PeftModel, batch: dict[str, torch.Tensor], steps: int = 3) -> None:
    model.train()
    # Weight decay would move frozen rows of a shared parameter, whatever their gradient.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()


def layer_tensors(path: Path, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.model.layers.{layer}.mlp."
    return {name.removeprefix(prefix): t for name, t in load_file(path / WEIGHTS).items() if name.startswith(prefix)}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_new_experts_are_copies_of_the_base(low_cpu_mem_usage: bool, old_adapter: Path, tmp_path: Path) -> None:
    extend(old_adapter, low_cpu_mem_usage).save_pretrained(tmp_path / "new")
    for layer, (old_count, count) in enumerate(zip(OLD, EXTENDED, strict=True)):
        old, new = layer_tensors(old_adapter, layer), layer_tensors(tmp_path / "new", layer)
        base = tiny_model().model.layers[layer].mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = getattr(base, name).weight
            assert new[f"moe_{name}"].shape == (count - 1, *weight.shape)
            kept, added = new[f"moe_{name}"].split([old_count - 1, count - old_count])
            assert old_count == 1 or torch.equal(kept, old[f"moe_{name}"])
            assert all(torch.equal(expert, weight) for expert in added)
        router = new["moe_router.weight"]
        assert router.shape == (count, 16)
        assert old_count == 1 or torch.equal(router[:old_count], old["moe_router.weight"])
        assert router.norm(dim=1).min() > 0


def test_training_changes_the_new_alone(old_adapter: Path, tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    model = extend(old_adapter, aux_loss_coef=0.1)
    train(model, batch)
    assert {name.split(".mlp.")[0][-1] for name, p in model.named_parameters() if p.requires_grad} == {"0", "1"}
    assert all(p.grad is None for name, p in model.named_parameters() if ".moe_old_" in name)
    model.save_pretrained(tmp_path / "new")
    for layer, (old_count, count) in enumerate(zip(OLD, EXTENDED, strict=True)):
        new, base = layer_tensors(tmp_path / "new", layer), tiny_model().model.layers[layer].mlp
        if old_count > 1:
            old = layer_tensors(old_adapter, layer)
            for name, tensor in old.items():
                assert torch.equal(new[name][: len(tensor)], tensor), name
        for expert in range(old_count - 1, count - 1):
            assert not torch.equal(new["moe_up_proj"][expert], base.up_proj.weight)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_the_old_stays_finer_than_the_base(low_cpu_mem_usage: bool, old_adapter: Path, tmp_path: Path) -> None:
    """An adapter trained in float32 on a base in bfloat16, as LLaMA-Factory does."""
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=EXTENDED, old_num_experts=OLD)
    model = PeftModel.from_pretrained(
        tiny_model().bfloat16(), old_adapter, config=config, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    model(input_ids=torch.arange(3, 9).unsqueeze(0)).logits.sum().backward()
    model.save_pretrained(tmp_path / "new")
    for layer in (0, 2):
        old, new = layer_tensors(old_adapter, layer), layer_tensors(tmp_path / "new", layer)
        assert all(torch.equal(new[name][: len(tensor)], tensor) for name, tensor in old.items())
    inference = PeftModel.from_pretrained(tiny_model().bfloat16(), tmp_path / "new")
    assert {p.dtype for p in inference.parameters()} == {torch.bfloat16}


def test_a_saved_extension_loads_and_goes_on(old_adapter: Path, tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    model = extend(old_adapter)
    train(model, batch)
    model.save_pretrained(tmp_path / "new")
    expected = logits(model, batch)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "new", is_trainable=True)
    assert torch.equal(logits(loaded, batch), expected)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    # A third language on top of the second.
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=[5, 3, 2], old_num_experts=EXTENDED)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "new", config=config, is_trainable=True)
    train(again, batch, steps=1)
    again.save_pretrained(tmp_path / "third")
    second, third = (layer_tensors(tmp_path / name, 0) for name in ("new", "third"))
    assert all(torch.equal(third[name][: len(tensor)], tensor) for name, tensor in second.items())


def test_the_order_of_experts_is_base_old_new(old_adapter: Path) -> None:
    old = PeftModel.from_pretrained(tiny_model(), old_adapter).base_model.model.model.layers[0].mlp
    new = extend(old_adapter).base_model.model.model.layers[0].mlp
    hidden_states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (
            [expert(hidden_states) for expert in layer._experts(layer._stacks("default")).runs()]
            for layer in (old, new)
        )
        assert (len(before), len(after)) == (3, 4)
        assert all(torch.equal(one, other) for one, other in zip(before, after[:3], strict=True))
        torch.testing.assert_close(after[3], before[0])
        kept, added = (router.weight for router in new._routers("default"))
        assert torch.equal(kept, old._routers("default")[0].weight)
        assert added.shape == (1, 16)


def test_in_a_second_stage_all_routers_can_train(old_adapter: Path) -> None:
    """The published scripts give the full counts as the old ones there: nothing is added, nothing is kept."""
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=OLD, old_num_experts=OLD, train_only_router=True)
    model = PeftModel.from_pretrained(tiny_model(), old_adapter, config=config, is_trainable=True)
    trainable = {name.split(".mlp.")[1]: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == {"moe_router.default.weight"}
    assert trainable["moe_router.default.weight"].shape == (2, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [2, 3, 2], "old_num_experts": OLD}, r"old_num_experts is above num_experts in layers \[0\]"),
        ({"num_experts": EXTENDED, "old_num_experts": [3, 1]}, "old_num_experts has 2 entries"),
        ({"num_experts": EXTENDED, "old_num_experts": 0}, "old_num_experts must be an integer of at least 1"),
    ],
)
def test_bad_extensions(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_model(), moe_config(**options))


def test_extending_another_adapter_than_described(old_adapter: Path) -> None:
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=[5, 3, 2], old_num_experts=[4, 1, 2])
    with pytest.raises(ValueError, match=r"moe_gate_proj \(2, 24, 16\) instead of \(4, 24, 16\)"):
        PeftModel.from_pretrained(tiny_model(), old_adapter, config=config, is_trainable=True)


def test_extending_experts_of_another_rank(tmp_path: Path) -> None:
    get_peft_model(tiny_model(), moe_config(num_experts=OLD, expert_rank=4)).save_pretrained(str(tmp_path))
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=EXTENDED, old_num_experts=OLD, expert_rank=2)
    with pytest.raises(ValueError, match=r"moe_gate_proj_lora_A \(2, 4, 16\) instead of \(3, 2, 16\)"):
        PeftModel.from_pretrained(tiny_model(), tmp_path, config=config, is_trainable=True)


def test_an_old_tensor_that_is_missing(old_adapter: Path) -> None:
    tensors = load_file(old_adapter / WEIGHTS)
    del tensors["base_model.model.model.layers.0.mlp.moe_up_proj"]
    save_file(tensors, old_adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"lacks .*layers\.0\.mlp\.moe_up_proj"):
        extend(old_adapter)
