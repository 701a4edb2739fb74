"""Adapters of every family, loaded in a process that imports nothing of this package, give the saved logits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from tuner.tiny import FAMILIES, logits, moe_config, randomised, tiny_model

DTYPES = ["float32", "bfloat16"]
WAYS = ["same_name", "other_name", "low_cpu_mem_usage", "auto_class", "load_adapter", "adapter_folder"]

# Loads every adapter in every way and saves the logits.
PROGRAM = """
import sys
from pathlib import Path
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

batch = torch.load("batch.pt")
for folder in sorted(Path().glob("*/*/adapter")):
    base, adapter = str(folder.parent.parent / "base"), str(folder)
    dtype = getattr(torch, folder.parent.name)

    def load_base():
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)

    def load_adapter():
        model = load_base()
        model.load_adapter(adapter)
        return model

    ways = {
        "same_name": lambda: PeftModel.from_pretrained(load_base(), adapter),
        "other_name": lambda: PeftModel.from_pretrained(load_base(), adapter, adapter_name="greek"),
        "low_cpu_mem_usage": lambda: PeftModel.from_pretrained(load_base(), adapter, low_cpu_mem_usage=True),
        "auto_class": lambda: AutoPeftModelForCausalLM.from_pretrained(adapter, torch_dtype=dtype),
        "load_adapter": load_adapter,
        "adapter_folder": lambda: AutoModelForCausalLM.from_pretrained(adapter, dtype=dtype),
    }
    with torch.no_grad():
        logits = {name: load().eval()(**batch).logits for name, load in ways.items()}
    torch.save(logits, folder.parent / "logits.pt")
assert "neuronmoe_plugins.tuner" in sys.modules
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, forked_python: Path) -> Path:
    """A folder with base, adapter, and logits as saved and as loaded, by family and dtype."""
    folder = tmp_path_factory.mktemp("adapters")
    generator = torch.Generator().manual_seed(1)
    batch = {"input_ids": torch.randint(3, 61, (2, 9), generator=generator)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    torch.save(batch, folder / "batch.pt")
    for family in FAMILIES:
        # Sharded: a dozen files.
        tiny_model(family).save_pretrained(folder / family / "base", max_shard_size="2KB")
        for dtype in DTYPES:
            base = AutoModelForCausalLM.from_pretrained(folder / family / "base", dtype=getattr(torch, dtype))
            model = randomised(get_peft_model(base, moe_config(num_experts=[4, 1, 2])))
            model.peft_config["default"].base_model_name_or_path = str(folder / family / "base")
            model.save_pretrained(folder / family / dtype / "adapter")
            torch.save(logits(model, batch), folder / family / dtype / "expected.pt")
    subprocess.run([forked_python / "python", "-c", PROGRAM], cwd=folder, check=True, timeout=600)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_identical_bit_by_bit(loaded: Path, family: str, dtype: str) -> None:
    expected = torch.load(loaded / family / dtype / "expected.pt")
    found = torch.load(loaded / family / dtype / "logits.pt")
    assert list(found) == WAYS
    assert len(list((loaded / family / "base").glob("*.safetensors"))) > 3
    for way, values in found.items():
        assert torch.equal(values, expected), way
