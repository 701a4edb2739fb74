"""`neuronmoe compress --data`: the loss with both adapters, as transformers computes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.compression import CompressRequest
from neuronmoe_plugins.compression.compress import compress
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.loading import load_model
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from pruning.test_leaving_out import loss_by_transformers


def test_losses_before_and_after(
    adapters: dict[str, Path], data: Path, tiny_model_dir: Path, sentences: TokenizedSentences, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["compress", str(adapters["copies"]), "--rank", "1", f"--output={output}", f"--data={data}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads((output / "compression.json").read_text())
    found = {row["language"]: row for row in record["languages"]}
    assert {language: row["is_new"] for language, row in found.items()} == {"en": False, "el": True, "es": False}
    for name, adapter in (("before", adapters["copies"]), ("after", output)):
        expected = loss_by_transformers(load_model(str(tiny_model_dir), "float32", "cpu", str(adapter)), sentences)
        np.testing.assert_allclose([found[language][name] for language in sentences.languages], expected, rtol=1e-5)
    assert all(abs(row["after"] / row["before"] - 1) > 1e-4 for row in found.values())
    row = found["el"]
    assert f"│ {row['before']:.4f} │ {row['after']:.4f} │" in done.stdout
    assert record["texts"]["corpora"]


def test_a_folder_without_texts(adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nix holds no data sets \(no manifest\.json\)"):
        compress(CompressRequest(adapters["copies"], "1", tmp_path / "out", data=tmp_path / "nix"))
    assert not (tmp_path / "out").exists()
