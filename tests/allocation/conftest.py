"""What the tests of `neuronmoe allocate` share: a small analysis."""

from __future__ import annotations

from pathlib import Path

import pytest

from allocations import save_analysis


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """Five layers; en and el share (0, up, 0), and tr has the same unit in another module."""
    places = {
        "en": [(0, "mlp.up_proj", unit) for unit in range(6)] + [(4, "mlp.up_proj", 0)],
        "el": [(0, "mlp.up_proj", 0), (1, "mlp.up_proj", 7), (1, "mlp.up_proj", 8), (1, "mlp.up_proj", 9)],
        "tr": [(0, "mlp.down_proj", 0), (2, "mlp.up_proj", 1)],
        "hu": [],
    }
    return save_analysis(tmp_path / "analysis", places, num_layers=5)
