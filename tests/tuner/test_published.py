"""The published on-disk format: loads as it is, and converts both ways without loss."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app, main
from neuronmoe_plugins.convert import convert
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.reference_format import config_to_published
from tuner.tiny import GOLDEN, logits, moe_config, randomised, tiny_model

ADAPTER = GOLDEN / "adapter"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def test_loads_as_it_is(
    golden: dict[str, torch.Tensor], golden_base: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = PeftModel.from_pretrained(golden_base, ADAPTER)
    torch.testing.assert_close(logits(model, golden), golden["logits_eval"], atol=1e-5, rtol=0)
    assert [r.message for r in caplog.records if "published NeuronMoE format" in r.message]


@pytest.mark.filterwarnings("error:Unexpected keyword arguments")
def test_loads_by_every_entry_point(tmp_path: Path, golden: dict[str, torch.Tensor]) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTER, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": str(GOLDEN / "base")}
    (folder / CONFIG).chmod(0o644)
    (folder / CONFIG).write_text(json.dumps(config))
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    base.load_adapter(str(folder))
    for model in (
        base,
        AutoModelForCausalLM.from_pretrained(folder),
        AutoPeftModelForCausalLM.from_pretrained(folder),
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(GOLDEN / "base"), folder, adapter_name="el", low_cpu_mem_usage=True
        ),
    ):
        torch.testing.assert_close(logits(model, golden), golden["logits_eval"], atol=1e-5, rtol=0)


def test_a_missing_expert_is_named(tmp_path: Path, golden_base: torch.nn.Module) -> None:
    tensors = load_file(ADAPTER / WEIGHTS)
    del tensors["base_model.model.model.layers.3.mlp.moe_experts.1.up_proj.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    shutil.copyfile(ADAPTER / CONFIG, tmp_path / CONFIG)
    with pytest.raises(UserError, match=r"layers\.3\.mlp\.moe_up_proj.*2 experts, but not expert 1"):
        PeftModel.from_pretrained(golden_base, tmp_path)


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({"num_experts": 3, "layers_to_transform": [0, 2], "group_nums": 2, "old_num_experts": 3}, {0: 3, 2: 3}),
        ({"num_experts": [4, 1, 3], "layers_to_transform": [2, 0]}, {0: 4, 2: 3}),
        ({"num_experts": [2, 1, 3], "layers_to_transform": [2, 1, 0]}, {0: 2, 2: 3}),
    ],
)
def test_counts_go_by_the_layers_index(published: dict[str, Any], expected: dict[int, int]) -> None:
    config = PeftConfig.from_peft_type(peft_type="MOE", save_all_params=False, **published)
    plans = config.layer_plans(3)
    assert {layer: plan.num_experts for layer, plan in plans.items()} == expected
    assert not any(plan.num_groups for plan in plans.values())
    assert config.topk == 1


def test_converting_the_published_adapter_and_back_restores_it(
    tmp_path: Path, golden: dict[str, torch.Tensor], golden_base: torch.nn.Module
) -> None:
    assert convert(ADAPTER, tmp_path / "ours") == "neuronmoe-plugins"
    assert not any("moe_experts" in name for name in load_file(tmp_path / "ours" / WEIGHTS))
    model = PeftModel.from_pretrained(golden_base, tmp_path / "ours")
    torch.testing.assert_close(logits(model, golden), golden["logits_eval"], atol=1e-5, rtol=0)
    assert convert(tmp_path / "ours", tmp_path / "published") == "published"
    assert_same_adapter(tmp_path / "published", ADAPTER)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"num_experts": [4, 1, 2], "train_only_router": True, "lpr_loss_coef": 0.1}),
        ("llama", {"num_experts": 3}),
        ("llama", {"num_experts": [3, 2], "layers_to_transform": [2, 0], "adapter_dtype": "bfloat16"}),
        ("llama", {"num_experts": 3, "layers_to_transform": 1, "old_num_experts": 2, "group_nums": [3]}),
        ("phi3", {"num_experts": 2}),
        ("gpt_neox", {"num_experts": [2, 3, 1]}),
    ],
)
def test_converting_ours_and_back_restores_it(
    family: str, options: dict[str, Any], tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    model = randomised(get_peft_model(tiny_model(family), moe_config(**options)))
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "published")
    published = load_file(tmp_path / "published" / WEIGHTS)
    assert all(".moe_experts." in n or "moe_router_embedding" in n or "moe_token_classify" in n for n in published)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "published")
    if "adapter_dtype" not in options:
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    convert(tmp_path / "published", tmp_path / "back")
    assert_same_adapter(tmp_path / "back", tmp_path / "ours")


def test_changes_survive_the_way_back(tmp_path: Path) -> None:
    get_peft_model(tiny_model(), moe_config(num_experts=[4, 1, 2], train_only_router=True)).save_pretrained(
        tmp_path / "a"
    )
    convert(tmp_path / "a", tmp_path / "b")
    changed = json.loads((tmp_path / "b" / CONFIG).read_text()) | {"aux_loss_coef": 0.7}
    (tmp_path / "b" / CONFIG).write_text(json.dumps(changed))
    convert(tmp_path / "b", tmp_path / "c")
    back = json.loads((tmp_path / "c" / CONFIG).read_text())
    assert (back["aux_loss_coef"], back["train_only_router"]) == (0.7, True)


def test_published_counts_cover_the_layers_in_between() -> None:
    config = config_to_published({"num_experts": [3, 2], "layers_to_transform": [2, 0], "old_num_experts": 1}, [0, 2])
    assert (config["num_experts"], config["layers_to_transform"]) == ([2, 1, 3], [0, 2])
    assert config["old_num_experts"] == [1, 1, 1]


def assert_same_adapter(folder: Path, expected: Path) -> None:
    """Same configuration; same tensors, in names, dtype and bits."""
    assert json.loads((folder / CONFIG).read_text()) == json.loads((expected / CONFIG).read_text())
    found, wanted = load_file(folder / WEIGHTS), load_file(expected / WEIGHTS)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(ADAPTER), str(tmp_path / "ours")])
    assert result.exit_code == 0
    assert "in the neuronmoe-plugins format" in result.output


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, None, "adapter_config.json does not exist; name the folder of an adapter"),
        ("[1", None, "adapter_config.json is not JSON (Expecting "),
        ('{"peft_type": "LORA"}', None, "its peft_type is not MOE"),
        (
            '{"peft_type": "MOE", "num_experts": 0}',
            {"a.0.mlp.moe_experts.0.up_proj.weight": torch.ones(2)},
            "num_experts",
        ),
        ('{"peft_type": "MOE"}', None, "adapter_model.safetensors is missing"),
        ('{"peft_type": "MOE"}', {"a": torch.ones(2)}, "has no experts"),
        (
            '{"peft_type": "MOE", "modules_to_save": ["lm_head"]}',
            {"a.0.mlp.moe_up_proj": torch.ones(1, 2, 2), "lm_head.weight": torch.ones(2)},
            "the adapter has modules_to_save, which the published format cannot hold",
        ),
    ],
)
def test_what_cannot_be_converted(
    config: str | None,
    tensors: dict[str, torch.Tensor] | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    if config is not None:
        (source / CONFIG).write_text(config)
    if tensors is not None:
        save_file(tensors, source / WEIGHTS)
    monkeypatch.setattr("sys.argv", ["neuronmoe", "convert", str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_truncated_weights_and_existing_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        convert(ADAPTER, ADAPTER.parent)
    shutil.copyfile(ADAPTER / CONFIG, tmp_path / CONFIG)
    (tmp_path / WEIGHTS).write_bytes((ADAPTER / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(UserError, match="safetensors cannot be read"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
