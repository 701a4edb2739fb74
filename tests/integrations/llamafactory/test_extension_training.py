"""Adding a language to an adapter with `llamafactory-cli train`: stage 1, its extension, and stage 2 with groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import llamafactory_train, losses, stage1_arguments, train

LAYER = "base_model.model.model.layers.{}.mlp.moe_"
WEIGHTS = ("gate_proj", "up_proj", "down_proj")
OLD, NEW = {0: 3, 3: 2}, {0: 4, 2: 2, 3: 2}
EXTENSION = {
    "ada_moe_num_experts_list": "4,1,2,2",
    "old_moe_num_experts_list": "3,1,1,2",
    "dataset": "el_third",
    "aux_loss_coef": 0.01,
    "aux_loss_per_sequence": True,
    "sequential_add_loss_coef": 0.1,
    "sequential_add_mask": True,
}
STAGE2 = {
    "ada_moe_num_experts_list": None,
    "old_moe_num_experts_list": [4, 1, 2, 2],
    "group_nums": "2,0,0,2",
    "train_only_router": True,
    "classify_loss_coef": 0.2,
    "lpr_loss_coef": 0.1,
    "generate_lang_mask": True,
    "sequential_add_mask": True,
    "dataset": "en_even,el_even",
    "mix_strategy": "interleave_under",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_dir: Path, forked: Path) -> Path:
    """The folder of the runs `stage1`, `extension` and `stage2`."""
    folder = tmp_path_factory.mktemp("extension") / "runs"
    folder.mkdir()
    adapter: dict[str, Any] = {}
    for name, more in (("stage1", {}), ("extension", EXTENSION), ("stage2", STAGE2)):
        args = stage1_arguments(tiny_model_dir, data_dir, folder / name) | adapter | more
        (folder / f"{name}.yaml").write_text(
            json.dumps({key: value for key, value in args.items() if value is not None})
        )
        llamafactory_train(folder / f"{name}.yaml", commands=forked)
        adapter = {"adapter_name_or_path": str(folder / name)}
    return folder


def weights_of(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(runs / name / "adapter_model.safetensors")


def written_losses(output: Path) -> list[dict[str, float]]:
    """The training steps of trainer_log.jsonl."""
    entries = map(json.loads, (output / "trainer_log.jsonl").read_text().splitlines())
    return [entry for entry in entries if "loss" in entry]


def test_the_extension_keeps_old_experts_and_trains_new_ones(runs: Path, tiny_model_dir: Path) -> None:
    base = load_file(tiny_model_dir / "model.safetensors")
    before, after = weights_of(runs, "stage1"), weights_of(runs, "extension")
    for layer, count in NEW.items():
        old = OLD.get(layer, 1)
        for name in WEIGHTS:
            key = LAYER.format(layer) + name
            experts, original = after[key], base[f"model.layers.{layer}.mlp.{name}.weight"]
            assert len(experts) == count - 1
            if old > 1:
                assert experts.dtype == before[key].dtype == torch.float32
                assert experts[: old - 1].equal(before[key])
            for expert in experts[old - 1 :]:
                assert 0 < (expert - original).abs().max() < 0.05
        router = LAYER.format(layer) + "router.weight"
        assert after[router].shape == (count, 32)
        if old > 1:
            assert after[router][:old].equal(before[router])
    assert len(after) == 4 * len(NEW)


def test_stage2_trains_routers_and_classifiers(runs: Path) -> None:
    before, after = weights_of(runs, "extension"), weights_of(runs, "stage2")
    classifiers = {LAYER.format(layer) + "token_classify.weight" for layer in (0, 3)}
    assert after.keys() - before.keys() == classifiers
    assert {after[name].shape for name in classifiers} == {(2, 32)}
    for name, tensor in before.items():
        if "router" in name:
            assert (after[name] != tensor).any(dim=1).all(), name
        else:
            assert after[name].equal(tensor), name


@pytest.mark.parametrize(
    ("name", "coefficients"),
    [
        ("extension", {"aux_loss": 0.01, "sequential_add_loss": 0.1}),
        ("stage2", {"classify_loss": 0.2, "lpr_loss": 0.1}),
    ],
)
def test_every_log_has_the_losses(runs: Path, name: str, coefficients: dict[str, float]) -> None:
    steps, written = losses(runs / name), written_losses(runs / name)
    assert len(steps) == len(written) == 4
    for step, entry in zip(steps, written, strict=True):
        assert {key for key in step if key.endswith("_loss")} == {"lm_loss", *coefficients}
        assert all(entry[key] == step[key] > 0 for key in coefficients)
        total = step["lm_loss"] + sum(coefficient * step[key] for key, coefficient in coefficients.items())
        assert step["loss"] == pytest.approx(total, abs=1e-4)


def test_two_processes_reduce_the_same_losses(runs: Path, forked: Path) -> None:
    output = runs / "stage2_double"
    overrides = [f"output_dir={output}", "per_device_train_batch_size=2"]
    llamafactory_train(runs / "stage2.yaml", *overrides, commands=forked, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    one, two = losses(runs / "stage2"), losses(output)
    # The fresh classifiers are random.
    for name in ("lm_loss", "lpr_loss"):
        assert two[0][name] == pytest.approx(one[0][name], rel=0.05), name
    for step in two:
        parts = step["lm_loss"] + 0.2 * step["classify_loss"] + 0.1 * step["lpr_loss"]
        assert step["loss"] == pytest.approx(parts, abs=2e-4)


def test_the_adapter_loads_and_routes_groups(runs: Path, tiny_model_dir: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = PeftModel.from_pretrained(base, runs / "stage2").eval()
    config = model.peft_config["default"]
    assert (config.num_experts, config.old_num_experts) == ([4, 1, 2, 2], [4, 1, 2, 2])
    assert config.group_nums == [2, 0, 0, 2]
    saved = weights_of(runs, "stage2")
    parameters = {name.replace(".default", ""): value for name, value in model.named_parameters()}
    assert all(parameters[name].equal(tensor) for name, tensor in saved.items())
    with torch.no_grad():
        assert model(torch.arange(3, 40).unsqueeze(0)).logits.isfinite().all()


def test_extending_again_without_the_classifiers(runs: Path, moe_args: dict[str, Any], tmp_path: Path) -> None:
    again = {"old_moe_num_experts_list": "4,1,2,2", "ada_moe_num_experts_list": "4,1,3,2", "group_nums": 0}
    steps = train(moe_args | again, tmp_path / "again", adapter_name_or_path=str(runs / "stage2"))
    before, after = weights_of(runs, "stage2"), load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert after.keys() == {name for name in before if "classify" not in name}
    for name, tensor in after.items():
        assert tensor[: len(before[name])].equal(before[name]), name
    assert len(after[LAYER.format(2) + "up_proj"]) == 2
    assert len(steps) == 4
