"""`neuronmoe export` as users see it: what it writes and says, and what it refuses, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from export.making import MakeAdapter
from neuronmoe_plugins import cli
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export import checkpoint
from neuronmoe_plugins.export.checkpoint import write_weights
from neuronmoe_plugins.export.ernie import Ernie45Moe
from neuronmoe_plugins.export.sources import Source
from tuner.tiny import moe_config, randomised


def run(folder: Path, *options: object) -> Result:
    arguments = ["export", folder / "adapter", "--output", folder / "out", *options]
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_it_writes_all_that_a_model_needs_and_says_what_it_costs(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = randomised(get_peft_model(base, moe_config(num_experts=[2, 1, 1, 2], aux_loss_coef=0.01)))
    model.save_pretrained(tmp_path / "adapter")
    result = run(tmp_path, "--text", "καλημέρα", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "Loading weights" not in result.output
    own, written = (
        load_file(tmp_path / "adapter/adapter_model.safetensors"),
        load_file(tmp_path / "out/model.safetensors"),
    )
    adapter, total = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (own, written))
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert f"qwen2_moe: {total:,} parameters: " in result.output
    assert f", {adapter:,} of the adapter, and {4 * (32 + 2 * 16) + 2 * (25 * 32):,} that qwen2_moe" in result.output
    assert "Warning: weights were rounded to the dtype of the checkpoint" in result.output
    assert "On 17 tokens of a given text its logits differ from the adapter's by at most " in result.output
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"] == [1, 67]
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "Experts in each layer, the base model's MLP included: 2, 1, 1, 2." in card
    assert '"aux_loss_coef": 0.01' in card
    again = run(tmp_path)
    assert str(again.exception) == f"--output {tmp_path / 'out'} exists already: choose another folder, or remove it"


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def other_weights(folder: Path) -> None:
    edit_tensors(folder / "base/model.safetensors", lambda own: {name: 2 * tensor for name, tensor in own.items()})


def trained_head(folder: Path) -> None:
    head = {"base_model.model.lm_head.weight": torch.ones(61, 16)}
    edit_tensors(folder / "adapter/adapter_model.safetensors", lambda own: own | head)


def lost_expert(folder: Path) -> None:
    path = folder / "adapter/adapter_model.safetensors"
    edit_tensors(path, lambda own: {name: tensor[:1] if "moe_up" in name else tensor for name, tensor in own.items()})


UNEVEN = {"num_experts": [3, 2, 1]}
# Why -> family, configuration of the base, of the adapter, what happens to the files, further options, what is said.
Refusal = tuple[str, dict[str, Any], dict[str, Any], Callable[[Path], object], list[str], str]
NOTHING: Callable[[Path], object] = lambda folder: None  # noqa: E731
REFUSED: dict[str, Refusal] = {
    "groups": (
        "llama",
        {},
        UNEVEN | {"old_num_experts": [2, 2, 1], "group_nums": [2, 0, 0]},
        NOTHING,
        [],
        "has language groups (group_nums), whose classifiers choose experts for a whole text",
    ),
    "uneven": ("qwen2", {}, UNEVEN, NOTHING, [], "(qwen2_moe: all its mixtures have one count, and layer 1 has 2 "),
    "own": (
        "qwen2",
        {},
        UNEVEN,
        NOTHING,
        [],
        "take --as neuronmoe, which runs where this package is installed, or run ",
    ),
    "topk": ("llama", {}, UNEVEN | {"topk": 1}, NOTHING, ["--as", "ernie4_5_moe"], "it renormalises the weights of a "),
    "biases": ("llama", {"mlp_bias": True}, {}, NOTHING, [], "no place for model.layers.0.mlp.gate_proj.bias"),
    "window": ("mistral", {"sliding_window": 4}, UNEVEN, NOTHING, [], "ernie4_5_moe: it has no sliding windows"),
    "half": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        {},
        NOTHING,
        [],
        "its layers all have a sliding window or none, and here 2 have one",
    ),
    "heads": ("llama", {"head_dim": 12}, {}, NOTHING, ["--as", "qwen2_moe"], " = 8 units, and the base's 12"),
    "family": (
        "olmo2",
        {},
        {},
        NOTHING,
        [],
        "(known are those for llama, mistral, qwen2, qwen3, and the base is olmo2)",
    ),
    "norms": ("qwen3", {}, {}, NOTHING, ["--as", "qwen2_moe"], "on llama, mistral, qwen2, not on qwen3"),
    "other base": ("llama", {}, {}, other_weights, [], "adapter is one of another model, but "),
    "head": ("llama", {}, {}, trained_head, [], "has base_model.model.lm_head.weight beside its mixtures of MLPs"),
    "lost": ("llama", {}, {}, lost_expert, [], "moe_up_proj is (1, 24, 16) instead of (2, 24, 16)"),
    "quantised": (
        "llama",
        {},
        {},
        lambda folder: edit_config(folder / "base", quantization_config={"quant_method": "bitsandbytes"}),
        [],
        "base is quantised, and its weights are copied in floating point: name the model that it was",
    ),
    "pickle": (
        "llama",
        {},
        {},
        lambda folder: (folder / "base/model.safetensors").unlink(),
        [],
        "has no model.safetensors: weights are read as safetensors alone",
    ),
    "device": ("llama", {}, {}, NOTHING, ["--device", "cuda:7"], "--device cuda:7 cannot be used: "),
    "no tokenizer": ("llama", {}, {}, NOTHING, ["--text", "a"], "base has no tokenizer_config.json; put the model's "),
    "space": ("llama", {}, {}, NOTHING, [], "out needs 0.0 GB, and "),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused(why: str, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, base, options, change, given, message = REFUSED[why]
    make_adapter(family, base, **options)
    change(tmp_path)
    if why == "space":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    before = sorted(tmp_path.iterdir())
    result = run(tmp_path, *given)
    assert isinstance(result.exception, UserError), result.exception
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_that_computes_something_else_is_not_kept(
    make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(**UNEVEN)
    monkeypatch.setattr(Ernie45Moe, "NEVER", 0.0)
    result = run(tmp_path)
    assert isinstance(result.exception, UserError)
    assert "its logits as ernie4_5_moe differ from the adapter's by " in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_one_shard_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20)
    there: list[int] = []

    def read() -> torch.Tensor:
        there.append(len(list(tmp_path.iterdir())))
        return torch.ones(4)

    assert not write_weights(tmp_path, {f"{i}": Source((4,), read) for i in range(3)}, torch.float32, progress=False)
    assert there == [0, 1, 2]
