"""`neuronmoe compress`: the low-rank experts nearest to an adapter's own, against numpy's SVD and full copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.compression import CompressRequest
from neuronmoe_plugins.compression.compress import compress
from neuronmoe_plugins.errors import UserError
from tuner.tiny import GOLDEN, GROUPS, logits, moe_config, randomised, tiny_model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FULL = {"num_experts": [3, 1, 2]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> the folder of a tiny model, each in several files."""
    folder = tmp_path_factory.mktemp("bases")
    for name, model in {"llama": tiny_model(), "other": tiny_model(seed=1), "gpt_neox": tiny_model("gpt_neox")}.items():
        model.save_pretrained(folder / name, max_shard_size="8KB")
    assert (folder / "llama/model.safetensors.index.json").exists()
    return {path.name: path for path in folder.iterdir()}


def save(model: Any, folder: Path, base: Path) -> Path:
    """An adapter that names its base model."""
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


def full_copies(low_rank: Any, options: dict[str, Any]) -> Any:
    """The mixture of the same routers whose experts are W + scaling B A."""
    full = get_peft_model(tiny_model(), moe_config(**options))
    full.load_state_dict(low_rank.state_dict(), strict=False)
    state, own = low_rank.state_dict(), full.state_dict()
    for name, layer in low_rank.named_modules():
        if hasattr(layer, "plans"):
            for stack in (f"moe_{old}{projection}" for projection in PROJECTIONS for old in ("", "old_")):
                if f"{name}.{stack}.default" in own:
                    delta = state[f"{name}.{stack}_lora_B.default"] @ state[f"{name}.{stack}_lora_A.default"]
                    weight = state[f"{name}.base_layer.{stack.removeprefix('moe_').removeprefix('old_')}.weight"]
                    own[f"{name}.{stack}.default"].copy_(weight + layer.scaling["default"] * delta)
    return full


def compressed(adapter: Path, rank: str, **options: Any) -> tuple[Any, Path]:
    output = adapter.with_name(f"{adapter.name}-{rank}")
    return compress(CompressRequest(adapter, rank, output, **options)), output


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        pytest.param(FULL | {"layers_to_transform": [0, 1, 2]}, "4", id="one rank"),
        pytest.param(GROUPS | {"topk": 3}, "2,5,4", id="ranks per layer, kept experts and classifiers"),
    ],
)
def test_deltas_of_that_rank_stay_exactly(
    options: dict[str, Any], rank: str, batch: dict[str, torch.Tensor], bases: dict[str, Path], tmp_path: Path
) -> None:
    ranks = [int(each) for each in rank.split(",")]
    low_rank = {"expert_rank": ranks if len(ranks) > 1 else ranks[0], "use_rslora": True, "lora_alpha": 3}
    model = full_copies(randomised(get_peft_model(tiny_model(), moe_config(**options | low_rank))), options)
    adapter = save(model, tmp_path / "full", bases["llama"])
    compression, output = compressed(adapter, rank)
    assert all(row.relative_error < 1e-5 for row in compression.layers)
    expected = [(layer, experts - 1) for layer, experts in enumerate(options["num_experts"]) if experts > 1]
    assert [(row.layer, row.experts) for row in compression.layers] == expected
    assert [row.rank for row in compression.layers] == [(ranks * 3)[layer] for layer, _ in expected]
    loaded = PeftModel.from_pretrained(tiny_model(), output)
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=1e-5, rtol=1e-5)
    before, after = load_file(adapter / WEIGHTS), load_file(output / WEIGHTS)
    others = {name for name in before if name.endswith(".weight")}
    assert len(others) in (2, 4), "routers, and in one case classifiers"
    assert all(before[name].equal(after[name]) for name in others)
    assert {name for name in after if "_lora_" not in name} == others
    kept, config = (json.loads((folder / CONFIG).read_text()) for folder in (adapter, output))
    assert config.pop("expert_rank") == low_rank["expert_rank"]
    assert config.pop("lora_alpha") == ([4 * each for each in ranks] if len(ranks) > 1 else 4 * ranks[0])
    assert kept.pop("expert_rank") is kept.pop("lora_alpha") is None
    assert config == kept
    assert config["base_fingerprint"]


def test_what_is_kept_is_what_numpy_keeps(bases: dict[str, Path], tmp_path: Path) -> None:
    model = randomised(get_peft_model(tiny_model(), moe_config(**FULL)))
    adapter = save(model, tmp_path / "full", bases["llama"])
    compression, output = compressed(adapter, "3")
    before, after = load_file(adapter / WEIGHTS), load_file(output / WEIGHTS)
    base = {name: tensor.double().numpy() for name, tensor in tiny_model().state_dict().items()}
    for row in compression.layers:
        energies = []
        for projection in PROJECTIONS:
            stack = f"base_model.model.model.layers.{row.layer}.mlp.moe_{projection}"
            deltas = before[stack].double().numpy() - base[f"model.layers.{row.layer}.mlp.{projection}.weight"]
            left, values, right = np.linalg.svd(deltas, full_matrices=False)
            nearest = left[..., :3] * values[:, None, :3] @ right[:, :3]
            down, up = (after[f"{stack}_lora_{part}"].double().numpy() for part in "AB")
            np.testing.assert_allclose(4 * up @ down, nearest, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(down, axis=2), np.linalg.norm(up, axis=1), rtol=1e-4)
            energies.append([(values**2).sum(), (values[:, :3] ** 2).sum()])
        of_all, kept = np.sum(energies, axis=0)
        assert row.energy_kept == pytest.approx(kept / of_all, rel=1e-5)
        assert row.relative_error == pytest.approx((1 - kept / of_all) ** 0.5, rel=1e-5)


def test_another_rank(batch: dict[str, torch.Tensor], bases: dict[str, Path], tmp_path: Path) -> None:
    """Of experts of low rank, to which a higher rank adds directions that can be trained."""
    model = randomised(get_peft_model(tiny_model(), moe_config(**FULL, expert_rank=4, lora_alpha=3, targets="both")))
    adapter = save(model, tmp_path / "four", bases["llama"])
    wider, output = compressed(adapter, "6")
    assert wider.total.relative_error < 1e-5
    loaded = PeftModel.from_pretrained(tiny_model(), output, is_trainable=True)
    assert loaded.peft_config["default"].lora_alpha == 4 * 6, "as in a new one"
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=1e-5, rtol=1e-5)
    loaded.train()(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
    gradient = loaded.base_model.model.model.layers[0].mlp.moe_up_proj_lora_B["default"].grad
    assert (gradient.norm(dim=1) > 0).all()
    narrower, _ = compressed(output, "2")
    assert 0.1 < narrower.total.relative_error < 0.9


def test_an_untrained_adapter_is_a_new_one(
    batch: dict[str, torch.Tensor], bases: dict[str, Path], tmp_path: Path
) -> None:
    """In bfloat16, of a base in float32: what that rounds away is nothing that the experts have learned."""
    model = get_peft_model(tiny_model(), moe_config(**FULL, adapter_dtype="bfloat16"))
    compression, output = compressed(save(model, tmp_path / "full", bases["llama"]), "2")
    assert (compression.total.delta, compression.total.relative_error) == (0, 0)
    after = load_file(output / WEIGHTS)
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        if "_lora_" in name:
            assert tensor.any() == name.endswith("_lora_A")


def test_biases(batch: dict[str, torch.Tensor], bases: dict[str, Path], tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("gpt_neox"), moe_config(num_experts=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dense_4h_to_h.default"):
                parameter[0, 3] += 0.5  # rank 1
    adapter = save(model, tmp_path / "full", bases["gpt_neox"])
    _, output = compressed(adapter, "1")
    loaded = PeftModel.from_pretrained(tiny_model("gpt_neox"), output)
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=1e-5, rtol=1e-5)
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.gpt_neox.layers.1.mlp.moe_dense_h_to_4h_bias"][0, 2] += 0.01
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(UserError, match=r"expert 1 has learned a bias in gpt_neox\.layers\.1\.mlp\.dense_h_to_4h, and"):
        compressed(adapter, "2")


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(get_peft_model(tiny_model(), moe_config(**FULL)), tmp_path_factory.mktemp("a") / "full", bases["llama"])


def test_the_command(adapter: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(adapter), "--rank", "4", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "│   all │           3 │      │         0.0000 │     100.00% │" in result.stdout.replace("┃", "│")
    assert f"parameters of the adapter: 3,536 -> 1,520 (-57.0 %)\nWrote {tmp_path / 'out'}\n" in result.stdout
    record = json.loads((tmp_path / "out/compression.json").read_text())
    assert [(row["layer"], row["rank"]) for row in record["layers"]] == [(0, 4), (2, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "0"}, r"--rank is 0; it must be a whole number, 1 or more, or one per layer with commas between$"),
        ({"rank": "4,x"}, r"--rank is 4,x; it must be a whole number"),
        ({"rank": "17"}, r"--rank is 17, but down_proj of layer 0 is 16 x 24: give at most 16$"),
        ({"rank": "16,2,17"}, r"--rank is 17, but down_proj of layer 2 is 16 x 24"),
        ({"rank": "2,2"}, r"--rank: expert_rank has 2 entries, but 3 of the model's 3 layers are transformed"),
        (
            {"model": "gpt_neox"},
            r"layers\.0\.mlp\.down_proj is missing in the base model and \(16, 24\) in .*: name the",
        ),
        (
            {"model": "other"},
            r"full is an adapter of another model, but .*other has other weights \(in model\.layers\.0",
        ),
        ({"model": "./nix"}, r"--model \./nix does not exist, and is no name on"),
        ({"adapter": GOLDEN / "adapter", "model": GOLDEN / "base"}, r"is in the published format: run `neuronmoe conv"),
        ({"adapter": GOLDEN / "base"}, r"base/adapter_config\.json does not exist; name the folder of an adapter"),
        ({"adapter": GOLDEN / "adapter"}, r"adapter_config\.json.*base"),
        ({"output": GOLDEN / "base"}, r"--output .*base exists already: choose another folder, or remove it"),
    ],
)
def test_refused(options: dict[str, Any], message: str, adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    given = {"adapter": adapter, "rank": "2", "output": tmp_path / "out"} | options
    if "model" in given:
        given["model"] = str(bases.get(given["model"], given["model"]))
    with pytest.raises(UserError, match=message) as refused:
        compress(CompressRequest(**given))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
