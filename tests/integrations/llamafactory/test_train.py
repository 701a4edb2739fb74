"""`llamafactory-cli train` on what `neuronmoe recipe` writes: both stages, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training_runs import llamafactory_train, losses

from allocations import save_allocation
from neuronmoe_plugins.machines import Device
from neuronmoe_plugins.recipe_files import RecipeRequest, write_recipe

TINY = [
    *("bf16=false", "cutoff_len=64", "mix_strategy=interleave_under", "per_device_train_batch_size=4"),
    *("learning_rate=1.0e-3", "max_steps=4", "logging_steps=1"),
]
STAGES = ("stage1", "stage2")
LAYERS = (0, 3)
EXPERT_SHARES = {f"expert_share/layer_{layer}/expert_{e}" for layer, count in ((0, 3), (3, 2)) for e in range(count)}


@pytest.fixture(scope="module")
def single(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_dir: Path, forked: Path
) -> dict[str, Any]:
    """Both stages in one process, the first in a forked one; `folder` and what each printed."""
    folder = tmp_path_factory.mktemp("single") / "run"
    folder.mkdir()
    save_allocation(folder / "allocation.yaml", [3, 1, 1, 2], [9.0, 1.0, 1.0, 5.0])
    data = (("el_even",), ("en_even",), data_dir)
    write_recipe(RecipeRequest(folder / "allocation.yaml", str(tiny_model_dir), folder, *data, device=Device.CPU))
    printed = {
        stage: llamafactory_train(folder / f"{stage}.yaml", *TINY, commands=commands)
        for stage, commands in zip(STAGES, (forked, None), strict=True)
    }
    return {"folder": folder} | printed


def test_stage1_trains_experts_and_routers(single: dict[str, Any]) -> None:
    weights = load_file(single["folder"] / "stage1" / "adapter_model.safetensors")
    assert {name.split("layers.")[1].split(".")[0] for name in weights} == set(map(str, LAYERS))
    experts = weights["base_model.model.model.layers.0.mlp.moe_up_proj"]
    assert experts.shape == (2, 48, 32)
    assert not experts[0].equal(experts[1])
    line = (
        "2 mixture layers, experts per layer with the base MLP: {0: 3, 3: 2}; 13,984 new parameters, 13,984 trainable"
    )
    assert single["stage1"].count(line) == 1


def test_stage2_trains_routers_alone(single: dict[str, Any]) -> None:
    stage1, stage2 = (
        load_file(single["folder"] / stage / "adapter_model.safetensors") for stage in ("stage1", "stage2")
    )
    assert stage1.keys() == stage2.keys()
    for name in stage1:
        assert stage1[name].equal(stage2[name]) == ("moe_router" not in name), name
    assert "13,984 new parameters, 160 trainable" in single["stage2"]


def test_a_fork_trains_what_a_fresh_process_does(single: dict[str, Any], forked: Path, tmp_path: Path) -> None:
    """As the programs of a study are forked."""
    llamafactory_train(single["folder"] / "stage2.yaml", *TINY, f"output_dir={tmp_path}", commands=forked)
    fresh = single["folder"] / "stage2"
    assert losses(tmp_path) == losses(fresh)
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (fresh / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "extra_loss", "coefficient"), [("stage1", "aux_loss", 0.01), ("stage2", "lpr_loss", 0.1)]
)
def test_every_log_has_losses_and_shares(
    single: dict[str, Any], stage: str, extra_loss: str, coefficient: float
) -> None:
    shares = {f"expert0_share/layer_{layer}" for layer in LAYERS}
    if stage == "stage2":
        shares |= {f"expert0_share_old/layer_{layer}" for layer in LAYERS}
    steps = losses(single["folder"] / stage)
    log_lines = (single["folder"] / stage / "trainer_log.jsonl").read_text().splitlines()
    written = [entry for entry in map(json.loads, log_lines) if "loss" in entry]
    assert len(steps) == len(written) == 4
    for step, entry in zip(steps, written, strict=True):
        names = {"lm_loss", extra_loss, *shares, *EXPERT_SHARES}
        assert names == {name for name in step if "_loss" in name or "share" in name}
        assert {name: step[name] for name in names} == {name: entry[name] for name in names}
        assert step["loss"] == pytest.approx(step["lm_loss"] + coefficient * step[extra_loss], abs=1e-4)
        assert all(0 <= step[name] <= 1 for name in shares)
        for layer in LAYERS:
            own = [step[name] for name in EXPERT_SHARES if f"/layer_{layer}/" in name]
            assert sum(own) == pytest.approx(1)
    assert single[stage].count("'expert0_share/layer_3'") == 4
    assert "expert_share/" not in single[stage]


def test_the_log_begins_with_the_layers_and_the_memory(single: dict[str, Any]) -> None:
    for stage, trainable in (("stage1", "9,312"), ("stage2", "96")):
        rows = [line.strip("|").split("|") for line in single[stage].splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in row] for row in rows]
        assert ["0", "3", "2", "9,312", trainable] in cells
        assert cells.index(["base model", "float32", "0.18 MiB"]) < [row[0] for row in cells].index("peak")


def routing(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "routing.json").read_text())


def test_the_run_ends_with_where_the_tokens_went(single: dict[str, Any]) -> None:
    for stage, kinds in (("stage1", {"all"}), ("stage2", {"all", "old", "new"})):
        found, step = routing(single["folder"] / stage), losses(single["folder"] / stage)[-1]
        assert (found["first_step"], found["last_step"], found["topk"]) == (4, 4, 2)
        assert found["layers"].keys() == {"0", "3"}
        for layer, own in found["layers"].items():
            assert kinds == own.keys() & {"all", "old", "new"}
            assert sum(own["all"]["choices"]) == 2 * own["all"]["tokens"] == 2 * 4 * 64
            logged = [step[f"expert_share/layer_{layer}/expert_{e}"] for e in range(own["num_experts"])]
            assert own["all"]["shares"] == pytest.approx(logged)
            assert own["all"]["expert0_share"] == pytest.approx(step[f"expert0_share/layer_{layer}"])
        assert (single["folder"] / stage / "routing.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (single["folder"] / stage / "routing.svg").read_text()


def test_the_trained_adapter_serves_inference(single: dict[str, Any], tiny_model_dir: Path) -> None:
    import torch
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_model, load_tokenizer
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = str(single["folder"] / "stage2")
    args = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": path, "template": "empty"}
    model_args, _, finetuning_args, _ = get_infer_args(args | {"finetuning_type": "moe", "infer_dtype": "float32"})
    served = load_model(load_tokenizer(model_args)["tokenizer"], model_args, finetuning_args, is_trainable=False)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), path)
    token_ids = torch.arange(3, 40).unsqueeze(0)
    assert not any(parameter.requires_grad for parameter in served.parameters())
    with torch.no_grad():
        assert served(token_ids).logits.allclose(expected.eval()(token_ids).logits, atol=1e-5)
