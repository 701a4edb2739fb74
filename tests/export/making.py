"""What the tests of exports, grafts and serving share: tokens, and what makes adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from tuner.tiny import moe_config, randomised, tiny_model

TOKENS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))
MakeAdapter = Callable[..., PeftModel]


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Makes a base model of three layers in `base` and an adapter in `adapter`, and returns the model with it."""

    def make(family: str = "llama", base: dict[str, Any] | None = None, **options: Any) -> PeftModel:
        model = tiny_model(family, **(base or {}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        model.save_pretrained(tmp_path / "base")
        model.name_or_path = str(tmp_path / "base")
        config = moe_config(**{"num_experts": 3} | options)
        config.base_model_name_or_path = str(tmp_path / "base")
        adapted = randomised(get_peft_model(model, config))
        adapted.save_pretrained(tmp_path / "adapter")
        return adapted

    return make
