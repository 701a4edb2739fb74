"""Which implementation runs the experts: configuration, environment, and what stands in where one cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model

from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from neuronmoe_plugins.tuner import experts as implementations
from neuronmoe_plugins.tuner.experts.stacks import DOWN, Experts, ExpertStack
from tuner.expert_layers import assert_same, hidden_states, make_layer, run
from tuner.tiny import randomised, tiny_model

REASONS: dict[str, tuple[Callable[[MoeLayer], Any], str]] = {
    "hook": (lambda layer: layer.base_layer.up_proj.register_forward_hook(lambda *_: None), "more than multiply"),
    "subclass": (
        lambda layer: setattr(layer.base_layer, "up_proj", torch.nn.Sequential(layer.base_layer.up_proj)),
        "more than multiply",
    ),
    "quantised": (lambda layer: setattr(layer, "base_is_quantised", True), "the base MLP is quantised"),
}


def choices(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about the choice; transformers may log lines of its own, if an earlier test let it."""
    return [message for message in caplog.messages if "experts_implementation" in message]


@pytest.mark.parametrize("case", REASONS)
def test_sorted_stands_in_and_says_why(case: str, caplog: pytest.LogCaptureFixture) -> None:
    layer, states = make_layer(), hidden_states(2, 5)
    expected = run(layer, states, "loop")
    change, reason = REASONS[case]
    change(layer)
    logging.Logger.warning_once.cache_clear()
    if case == "subclass":
        layer.base_layer.up_proj.weight = layer.base_layer.up_proj[0].weight
    for _ in range(2):
        found = run(layer, states, "grouped_mm")
    assert_same({name: found[name] for name in expected}, expected)
    (message,) = choices(caplog)
    assert message.startswith("experts_implementation: sorted instead of grouped_mm, because ")
    assert reason in message


def test_unaligned_rows(caplog: pytest.LogCaptureFixture) -> None:
    config = MoeConfig(
        task_type="CAUSAL_LM", num_experts=3, layers_to_transform=[1], experts_implementation="grouped_mm"
    )
    model = randomised(get_peft_model(tiny_model(intermediate_size=18), config))
    logging.Logger.warning_once.cache_clear()
    model(torch.tensor([[3, 4, 5]]))
    assert "rows of a weight (16, 18) are no multiple of 16 bytes" in caplog.text


def test_old_torch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    logging.Logger.warning_once.cache_clear()
    layer, states = make_layer(), hidden_states(2, 5)
    run(layer, states, "grouped_mm")
    assert f"torch {torch.__version__} has no grouped_mm" in caplog.text


def test_auto_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    layer = make_layer()
    assert layer.experts_implementation == {"default": "auto"}
    run(layer, hidden_states(2, 5), "auto")
    assert not choices(caplog)


class OnGpu:
    """What the choice asks of hidden states on a GPU."""

    is_cuda, is_meta = True, False

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens


@pytest.mark.parametrize(
    ("tokens", "rank", "captured", "expected"),
    [
        (8191, None, False, "grouped_mm"),
        (8192, None, False, "sorted"),
        (8192, None, True, "grouped_mm"),
        (32768, 4, False, "grouped_mm"),
    ],
)
def test_auto_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tokens: int, rank: int | None, captured: bool, expected: str
) -> None:
    """By name nothing depends on how many tokens there are."""
    monkeypatch.setattr(implementations, "why_not_grouped", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    name = "down_proj" if rank is None else f"down_proj{DOWN}"
    experts = Experts((ExpertStack({name: torch.zeros(2, rank or 3, 5)}),))
    states: Any = OnGpu(tokens)
    assert implementations._possible("auto", states, experts) == expected
    assert implementations._possible("grouped_mm", states, experts) == "grouped_mm"
    assert implementations._possible("sorted", states, experts) == "sorted"


def test_the_environment_decides_where_the_configuration_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(implementations.VARIABLE, "loop")
    assert make_layer().experts_implementation == {"default": "loop"}
    assert make_layer(experts_implementation="sorted").experts_implementation == {"default": "sorted"}
    monkeypatch.setenv(implementations.VARIABLE, "")
    assert make_layer().experts_implementation == {"default": "auto"}
    monkeypatch.setenv(implementations.VARIABLE, "sortd")
    with pytest.raises(ValueError, match=r"NEURONMOE_EXPERTS_IMPLEMENTATION must be one of .*; got 'sortd'"):
        make_layer()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"experts_implementation must be one of .*; got 'triton'"):
        MoeConfig(experts_implementation="triton")
    model = get_peft_model(tiny_model(), MoeConfig(task_type="CAUSAL_LM", num_experts=2))
    with pytest.raises(ValueError, match="got 'eager'"):
        model.base_model.set_experts_implementation("eager")
    model.base_model.set_experts_implementation("loop")
    layers = [m.experts_implementation for m in model.modules() if isinstance(m, MoeLayer)]
    assert layers == [{"default": "loop"}] * 3
