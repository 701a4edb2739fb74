"""Loading never loses weights in silence, and a file holds one adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file

from neuronmoe_plugins.errors import UserError
from tuner.tiny import logits, moe_config, randomised, tiny_model

WEIGHTS = "adapter_model.safetensors"
UP = "base_model.model.model.layers.0.mlp.moe_up_proj"
ROUTER = "base_model.model.model.layers.2.mlp.moe_router.weight"

Tensors = dict[str, torch.Tensor]


def load_by_peft(folder: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(tiny_model(), folder)


def load_by_peft_in_place(folder: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(tiny_model(), folder, low_cpu_mem_usage=True)


def load_by_transformers(folder: Path) -> torch.nn.Module:
    model = tiny_model()
    model.load_adapter(str(folder))
    return model


def rename(tensors: Tensors, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing expert weights": (lambda t: t.pop(UP), rf"it lacks {UP[17:]}\."),
    "missing router": (lambda t: t.pop(ROUTER), rf"it lacks {ROUTER[17:]}\."),
    "empty": (lambda t: t.clear(), r"it lacks .* and 4 more"),
    "unknown name": (lambda t: rename(t, UP, f"{UP}s"), rf"it lacks {UP[17:]}; it has, unknown to it, {UP[17:]}s"),
    "layer that stays dense": (
        lambda t: t.update({UP.replace(".0.", ".1."): t[UP].clone()}),
        r"unknown to it, model\.layers\.1\.mlp\.moe_up_proj\.",
    ),
    "fewer experts": (
        lambda t: t.update({UP: t[UP][:2]}),
        rf"in a wrong shape, {UP[17:]} \(2, 24, 16\) instead of \(3,",
    ),
    "wider": (
        lambda t: t.update({ROUTER: t[ROUTER].repeat(1, 2)}),
        r"moe_router.weight \(2, 32\) instead of \(2, 16\)",
    ),
    "another method": (
        lambda t: (t.clear(), t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(1)})),
        "lora_A",
    ),
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    randomised(get_peft_model(tiny_model(), moe_config(num_experts=[4, 1, 2]))).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("load", [load_by_peft, load_by_peft_in_place, load_by_transformers])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_fit_is_refused(
    damage: str, load: Callable[[Path], torch.nn.Module], adapter: Path
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    damaged, message = DAMAGES[damage]
    damaged(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load(adapter)


def test_another_base_model_is_refused(adapter: Path) -> None:
    with pytest.raises(ValueError, match=r"moe_gate_up_proj.*Check num_experts"):
        PeftModel.from_pretrained(tiny_model("phi3"), adapter)


def test_each_of_several_adapters_has_a_file_of_its_own(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    model = get_peft_model(tiny_model(), moe_config(num_experts=[4, 1, 2]), "el")
    model.add_adapter("el2", moe_config(num_experts=[1, 3, 2]))
    randomised(model)
    expected = {}
    for name in ("el", "el2"):
        model.set_adapter(name)
        expected[name] = logits(model, batch)
    model.save_pretrained(tmp_path)
    assert not torch.equal(*expected.values())
    for name, layers in (("el", ("0", "2")), ("el2", ("1", "2"))):
        tensors = load_file(tmp_path / name / WEIGHTS)
        assert {key.split("layers.")[1].split(".")[0] for key in tensors} == set(layers)
        assert len(tensors) == 8
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / name), batch), expected[name])


def test_deleting_an_adapter_leaves_the_other(batch: dict[str, torch.Tensor]) -> None:
    model = get_peft_model(tiny_model(), moe_config(num_experts=[4, 1, 2]), "el")
    model.add_adapter("el2", moe_config(num_experts=[1, 3, 2]))
    model.set_adapter("el2")
    expected = logits(randomised(model), batch)
    model.delete_adapter("el")
    assert {name.split(".mlp.")[0][-1] for name, _ in model.named_parameters() if ".moe_" in name} == {"1", "2"}
    assert not any(".el." in name or name.endswith(".el") for name, _ in model.named_parameters())
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}])
def test_the_dtype_is_that_of_the_base(options: dict[str, bool], adapter: Path) -> None:
    model = PeftModel.from_pretrained(tiny_model().bfloat16(), adapter, **options)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}])
def test_another_dtype_on_request(options: dict[str, bool], tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    config = moe_config(num_experts=3, adapter_dtype="float32")
    model = randomised(get_peft_model(tiny_model().bfloat16(), config))
    model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    loaded = PeftModel.from_pretrained(tiny_model().bfloat16(), tmp_path, **options)
    assert {p.dtype for name, p in loaded.named_parameters() if ".moe_" in name} == {torch.float32}
    assert logits(loaded, batch).dtype == torch.bfloat16
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_ignoring_sizes_is_up_to_the_caller(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    tensors[UP] = tensors[UP][:2].contiguous()
    save_file(tensors, adapter / WEIGHTS)
    # Where PEFT asks the tuner, it does not say that the caller would ignore them.
    refused = pytest.raises(UserError, match="in a wrong shape")
    warned = pytest.warns(UserWarning, match="moe_up_proj")
    with refused if hasattr(BaseTuner, "_remap_adapter_state_dict_for_load") else warned:
        PeftModel.from_pretrained(tiny_model(), adapter, ignore_mismatched_sizes=True)
