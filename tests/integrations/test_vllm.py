"""What vLLM is not let serve; what it computes is tested in tests/serving, where there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from neuronmoe_plugins.architecture.config import ARCHITECTURE
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.vllm import ERNIE, check_models


def create_config(folder: Path, architecture: str, served_by: str, device: str = "cpu", **values: Any) -> object:
    """What a stand-in for vLLM, in which the class `served_by` is chosen, makes of a model."""

    class EngineArgs:
        def __init__(self, model: str) -> None:
            self.model = model

        def create_engine_config(self) -> object:
            hf_config = SimpleNamespace(architectures=[architecture], **values)
            model = SimpleNamespace(model=self.model, hf_config=hf_config, architecture=served_by)
            return SimpleNamespace(model_config=model, device_config=SimpleNamespace(device_type=device))

    module = ModuleType("vllm.engine.arg_utils")
    module.EngineArgs = EngineArgs  # type: ignore[attr-defined]
    check_models(module)
    return EngineArgs(str(folder)).create_engine_config()


def test_an_adapter_of_mixtures_is_refused_before_it_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MOE"}))
    with pytest.raises(
        UserError, match=rf"^{tmp_path} is an adapter of mixtures, .* `neuronmoe export {tmp_path} --ou"
    ):
        create_config(tmp_path, "LlamaForCausalLM", "LlamaForCausalLM")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert create_config(tmp_path, "LlamaForCausalLM", "LlamaForCausalLM")


def test_classes_without_a_place_for_unequal_layers_are_refused(tmp_path: Path) -> None:
    uneven: dict[str, Any] = {"moe_num_shared_experts": 0}
    with pytest.raises(
        UserError, match=r"vLLM on a CPU ignores the bias .*; add --model-impl transformers \(model_impl="
    ):
        create_config(tmp_path, ERNIE, ERNIE, **uneven)
    with pytest.raises(UserError, match=r"gives all layers of a mixture one number of experts; leave --model-impl \("):
        create_config(tmp_path, ARCHITECTURE, "TransformersForCausalLM")
    for architecture, served_by, device, values in (
        (ERNIE, "TransformersMoEForCausalLM", "cpu", uneven),
        (ERNIE, ERNIE, "cuda", uneven),
        (ERNIE, ERNIE, "cpu", {"moe_num_shared_experts": 2}),
        (ARCHITECTURE, ARCHITECTURE, "cpu", {}),
    ):
        assert create_config(tmp_path, architecture, served_by, device, **values)


def test_a_plugin_that_was_not_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"LlamaForCausalLM"}
    vllm = SimpleNamespace(ModelRegistry=SimpleNamespace(get_supported_archs=lambda: known))
    monkeypatch.setitem(sys.modules, "vllm", vllm)  # type: ignore[arg-type]
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert create_config(tmp_path, "LlamaForCausalLM", "LlamaForCausalLM")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [ARCHITECTURE]}))
    said = f"{tmp_path}: vLLM has not loaded the plugin that has its class; "
    with pytest.raises(UserError, match=rf"^{said}install neuronmoe-plugins again where vLLM is, and .*\.egg-info$"):
        create_config(tmp_path, ARCHITECTURE, ARCHITECTURE)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(UserError, match=f"^{said}name neuronmoe among VLLM_PLUGINS$"):
        create_config(tmp_path, ARCHITECTURE, ARCHITECTURE)
    known.add(ARCHITECTURE)
    assert create_config(tmp_path, ARCHITECTURE, ARCHITECTURE)
