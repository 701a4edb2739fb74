"""The documentation's examples run as they are, and its table is that of the configuration."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors.torch import load_file

from neuronmoe_plugins.tuner import MoeConfig
from tuner.tiny import tiny_model

DOCS = Path(__file__).parents[2] / "docs"


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S)


def test_the_table_has_every_field_with_its_default() -> None:
    text = (DOCS / "moe_config.md").read_text(encoding="utf-8").split("## Model inputs")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, flags=re.M))
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    fields = {f.name: repr(f.default) for f in dataclasses.fields(MoeConfig) if f.name not in inherited}
    assert rows == fields


def test_the_lifecycle_example(tmp_path: Path, forked_python: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base-model")
    (program,) = code_blocks("moe_config.md", "python")
    result = subprocess.run(
        [forked_python / "python", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("trainable params: ")
    assert "'aux_loss'" in result.stdout
    assert "'lpr_loss'" in result.stdout
    greek, both = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("greek", "greek-turkish"))
    assert all(both[name][: len(tensor)].equal(tensor) for name, tensor in greek.items())
    assert sum(map(len, both.values())) > sum(map(len, greek.values()))


# Makes a mixture of a model that no built-in family knows.
NEMOTRON = """
import peft, torch
from transformers import NemotronConfig, NemotronForCausalLM
torch.manual_seed(0)
sizes = dict(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
model = NemotronForCausalLM(NemotronConfig(**sizes, num_key_value_heads=1)).eval()
input_ids = torch.arange(3, 12).unsqueeze(0)
with torch.no_grad():
    expected = model(input_ids).logits
config = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": 3, "aux_loss_coef": 0.1}
mixture = peft.get_peft_model(model, peft.get_peft_config(config))
with torch.no_grad():
    assert torch.allclose(mixture(input_ids).logits, expected, atol=1e-5)
mixture.train()(input_ids, labels=input_ids).loss.backward()
assert all(p.grad is not None for p in mixture.parameters() if p.requires_grad)
mixture.save_pretrained("adapter")
loaded = peft.PeftModel.from_pretrained(model, "adapter")
"""


def test_a_third_party_family(tmp_path: Path, forked_python: Path) -> None:
    """The plugin of the documentation, installed as its users would."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (module,), (project,) = (code_blocks("feed_forward_families.md", language) for language in ("python", "toml"))
    assert len([line for line in module.splitlines() if line]) <= 10
    (source / "nemotron_moe.py").write_text(module)
    (source / "pyproject.toml").write_text(project)

    def run(python: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *command],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    without = run(forked_python / "python", "-c", NEMOTRON)
    assert without.returncode == 1
    assert re.search(
        r"ValueError: NemotronForCausalLM .* has no MLP .* found none.*can be added by a plugin", without.stderr
    )
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    installed = run(Path(sys.executable), *pip, "--target", str(site), str(source))
    assert installed.returncode == 0, installed.stderr
    result = run(forked_python / "python", "-c", NEMOTRON, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_families_named_are_those_there_are() -> None:
    from neuronmoe_plugins.feed_forward.family import feed_forward_families

    page = (DOCS / "feed_forward_families.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| `(\w+)` \|", page, flags=re.M)
    named = {name: (tuple(re.findall(r"`(\w+)`", linears)), activation) for name, linears, activation in rows}
    assert named == {n: (family.projections, family.activation) for n, family in feed_forward_families().items()}


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_page_is_reachable(page: str) -> None:
    assert f"docs/{page}" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
