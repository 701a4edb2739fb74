"""What older hosts lack, made to be missing in those that are here; `make test-hosts` runs in the older ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft.utils.save_and_load
import pytest
import transformers
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import modeling_utils

from neuronmoe_plugins import host_versions
from neuronmoe_plugins.integrations.lm_eval import offer_tasks


class Layer(nn.Module):
    adapter_layer_names = ("weights",)

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(2, 2)
        self.weights = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
        self.active_adapters, self.enabled = ["one"], True

    def enable_adapters(self, enabled: bool) -> None:
        self.enabled = enabled

    def set_adapter(self, name: str, inference_mode: bool = False) -> None:
        host_versions.set_layer_adapter(self._set_adapter_of_older_peft, self, name, inference_mode)

    def _set_adapter_of_older_peft(self, name: str) -> None:
        self.active_adapters = [name]
        self.weights.requires_grad_(True)

    def delete_adapter(self, name: str) -> None:
        del self.weights[name]
        self.active_adapters = list(self.weights)

    def get_base_layer(self) -> nn.Module:
        return self.base


class OlderTuner(nn.Module):
    prefix, tuner_layer_cls, answer = "weights", Layer, 42

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.peft_config, self.active_adapter = model, {"one": 1, "two": 2}, "one"
        self.deleted_beside: list[Any] = []

    def _delete_auxiliary_adapter(self, name: str, new_active_adapters: list[str]) -> None:
        self.deleted_beside += [name, new_active_adapters]

    def _check_merge_allowed(self) -> None:
        raise ValueError("refused")


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def tuner(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tuners_utils, "BaseTunerLayer", Layer)
    return host_versions.whole_tuner(OlderTuner)(nn.ModuleDict({"mlp": layer}))


def test_adapters_live_in_a_tuner_without_a_lifecycle(tuner: Any, layer: Layer) -> None:
    tuner.disable_adapter_layers()
    assert not layer.enabled
    tuner.enable_adapter_layers()
    assert layer.enabled
    tuner.set_adapter("two")
    tuner._mark_only_adapters_as_trainable(tuner.model)
    assert (tuner.active_adapter, layer.active_adapters) == ("two", ["two"])
    trained = {name.split(".")[1] for name, p in tuner.model.named_parameters() if p.requires_grad}
    assert trained == {"weights"}
    tuner.set_adapter("two", inference_mode=True)
    assert not any(p.requires_grad for p in tuner.model.parameters())
    with pytest.raises(ValueError, match="three does not exist"):
        tuner.delete_adapter("three")
    tuner.delete_adapter("two")
    assert (tuner.active_adapter, list(tuner.peft_config)) == (["one"], ["one"])
    assert tuner.deleted_beside == ["two", ["one"]], "what is saved beside the layers"


def test_a_tuner_without_a_lifecycle_is_unloaded_and_never_merged(tuner: Any, layer: Layer) -> None:
    assert tuner.keys() == tuner.model.keys(), "what it has not, its model has"
    with pytest.raises(AttributeError):
        _ = tuner.no_such_attribute
    with pytest.raises(ValueError, match="refused"):
        tuner.merge_and_unload()
    assert tuner.unload()["mlp"] is layer.base


def test_a_whole_tuner_stays_as_it_is() -> None:
    has_lifecycle = hasattr(BaseTuner, "delete_adapter")
    assert (host_versions.whole_tuner(BaseTuner) is BaseTuner) == has_lifecycle


def test_rows_of_a_head_are_trained_since_peft_0_18() -> None:
    assert host_versions.trains_rows_of_heads() == hasattr(BaseTuner, "delete_adapter")


def test_peft_is_wrapped_only_where_it_asks_no_tuner() -> None:
    asks = host_versions.asks_tuners(peft.utils.save_and_load)
    assert asks == hasattr(BaseTuner, "_get_adapter_state_dict")
    assert asks != hasattr(peft.utils.save_and_load.get_peft_model_state_dict, "__wrapped__")


def test_fsdp_of_transformers_4_51(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "integrations", SimpleNamespace())
    monkeypatch.setattr(modeling_utils, "is_fsdp_enabled", lambda: True, raising=False)
    assert host_versions.is_fsdp_enabled()
    assert host_versions.fsdp_settings(SimpleNamespace()) is None


def test_sft_of_llamafactory_0_9_4_makes_no_reference_model() -> None:
    older, newer = type("Older", (), {}), type("Newer", (), {"use_asft_loss": False})
    assert host_versions.may_lack("create_ref_model", older)
    assert not host_versions.may_lack("create_ref_model", newer)
    assert not host_versions.may_lack("CustomTrainer.log", older)


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"group": "mmlu", "num_fewshot": 5}, {"task": "mmlu", "num_fewshot": 5}),
        ({"group": "mine", "task": ["arc_el"]}, {"group": "mine", "task": ["arc_el"]}),  # defined where it stands
        ({"group": "other", "num_fewshot": 5}, {"group": "other", "num_fewshot": 5}),
        ({"task": "arc_el", "num_fewshot": 25}, {"task": "arc_el", "num_fewshot": 25}),
        ("mmlu", "mmlu"),
        (None, None),
    ],
)
def test_groups_within_groups_of_older_lm_eval(member: Any, expected: Any) -> None:
    class Manager:
        """As that of lm-eval before 0.4.12, which calls itself by place and by name."""

        def match_tasks(self, task_list: list[str]) -> list[str]:
            return task_list

        def _name_is_group(self, name: str) -> bool:
            return name in ("mmlu", "mine")

        def _load_individual_task_or_group(self, name_or_config: Any = None, update_config: Any = None) -> Any:
            return name_or_config, update_config

    offer_tasks(SimpleNamespace(TaskManager=Manager))  # type: ignore[arg-type]
    load = Manager()._load_individual_task_or_group
    assert load(member, update_config=1) == load(name_or_config=member, update_config=1) == (expected, 1)
