"""What a `moe` run of LLaMA-Factory says: to TensorBoard, on the console, in warnings, and at its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_config, get_peft_model
from safetensors.torch import load_file, save_file
from training_runs import losses, train
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

MIXED = {"dataset": "en_even,el_even", "mix_strategy": "interleave_under", "generate_lang_mask": True}
TOKENS_OF_A_STEP = 4 * 64


def routing(output: Path) -> dict[str, Any]:
    return json.loads((output / "routing.json").read_text())


def test_every_value_reaches_tensorboard_but_experts_not_the_console(
    moe_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    shown = {"report_to": "tensorboard", "disable_tqdm": False, "plot_loss": True}
    steps = train(moe_args | MIXED, tmp_path / "run", aux_loss_coef=0.01, lpr_loss_coef=0.1, **shown)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = {name for name in steps[0] if "_loss" in name or "share" in name}
    assert {"lm_loss", "aux_loss", "lpr_loss", "expert0_share_old/layer_3", "expert_share/layer_0/expert_2"} < names
    for name in names:
        written = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert written == {step["step"]: pytest.approx(step[name]) for step in steps}, name
    console = capsys.readouterr().out
    assert console.count("expert0_share/layer_3") == 4
    assert "expert_share/" not in console
    assert (tmp_path / "run" / "training_loss.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("logging_steps", "first"), [(500, 1), (3, 4), (1, 4)], ids=["never logged", "a step after the last log", "each"]
)
def test_the_last_steps_are_in_the_end_whenever_they_were_logged(
    logging_steps: int, first: int, moe_args: dict[str, Any], tmp_path: Path
) -> None:
    """Neither does an evaluation in between count."""
    evaluated = {"eval_dataset": "el_even", "eval_strategy": "steps", "eval_steps": 2, "do_eval": True}
    train(moe_args | evaluated, tmp_path / "run", logging_steps=logging_steps)
    found = routing(tmp_path / "run")
    assert (found["first_step"], found["last_step"]) == (first, 4)
    for layer in found["layers"].values():
        assert layer["all"]["tokens"] == (5 - first) * TOKENS_OF_A_STEP
        for shares, counts in (("shares", "choices"), ("first_choice_shares", "first_choices")):
            total = sum(layer["all"][counts])
            assert layer["all"][shares] == pytest.approx([count / total for count in layer["all"][counts]])
        assert layer.keys() & {"old", "new"} == set()


def test_old_and_new_languages_are_told_apart(moe_args: dict[str, Any], tmp_path: Path) -> None:
    steps = train(moe_args | MIXED | {"topk": 1, "lpr_loss_coef": 0.1}, tmp_path / "run")
    found = routing(tmp_path / "run")
    assert (found["topk"], found["coefficients"]["lpr_loss_coef"]) == (1, 0.1)
    for layer, own in found["layers"].items():
        assert own["old"]["tokens"] == own["new"]["tokens"] == TOKENS_OF_A_STEP // 2
        for counts in ("choices", "first_choices"):
            pairs = zip(own["old"][counts], own["new"][counts], strict=True)
            assert own["all"][counts] == [old + new for old, new in pairs]
        assert own["old"]["expert0_share"] == pytest.approx(steps[-1][f"expert0_share_old/layer_{layer}"])


class Stop(TrainerCallback):
    """Ends a run in its third step as Ctrl-C does."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_an_interrupted_run_has_no_end_and_a_resumed_one_has(moe_args: dict[str, Any], tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState
    from llamafactory.train.tuner import run_exp

    AcceleratorState._reset_state(reset_partial_state=True)
    saved = moe_args | {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        run_exp(saved, callbacks=[Stop()])
    assert not list((tmp_path / "run").glob("routing.*"))
    train(saved, tmp_path / "run", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    found = routing(tmp_path / "run")
    assert (found["first_step"], found["last_step"]) == (4, 4)
    assert found["layers"]["0"]["all"]["tokens"] == TOKENS_OF_A_STEP


def test_a_run_that_llama_board_stops_has_no_end(
    moe_args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.train.callbacks import LogCallback

    monkeypatch.setattr(LogCallback, "on_step_begin", lambda self, *args, **kwargs: self._set_abort(None, None))
    assert len(train(moe_args, tmp_path / "run")) == 1
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "run").glob("routing.*"))


@pytest.fixture
def starved_adapter(moe_args: dict[str, Any], tmp_path: Path) -> Path:
    """An adapter whose top-1 router sends no token to expert 2 of layer 0: of x, -x and 0, 0 is never the largest."""
    train(moe_args | {"topk": 1}, tmp_path / "stage1", max_steps=1)
    path = tmp_path / "stage1" / "adapter_model.safetensors"
    weights = load_file(path)
    router = weights["base_model.model.model.layers.0.mlp.moe_router.weight"]
    router[1], router[2] = -router[0], 0
    save_file(weights, path, metadata={"format": "pt"})
    return tmp_path / "stage1"


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What this package logs through the host's logger."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("llamafactory.neuronmoe")
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_expert_without_tokens_is_warned_of_once(
    stage: int,
    starved_adapter: Path,
    moe_args: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
) -> None:
    monkeypatch.setattr("neuronmoe_plugins.integrations.llamafactory.routing.STARVED_STEPS", 3)
    monkeypatch.setattr("neuronmoe_plugins.integrations.llamafactory.run_log.STARVED_STEPS", 3)
    args = moe_args | {"adapter_name_or_path": str(starved_adapter), "topk": 1, "learning_rate": 1e-7}
    args |= {"aux_loss_coef": 0.01} if stage == 1 else MIXED | {"train_only_router": True, "lpr_loss_coef": 0.1}
    steps = train(args, tmp_path / "run", max_steps=6)
    assert [step["expert_share/layer_0/expert_2"] for step in steps] == [0.0] * 6
    (warning,) = (text for text in messages if "layer 0 expert 2" in text)
    assert "in the last 3 steps" in warning
    if stage == 1:
        assert "layer 0 expert 2 (0.0%)" in warning
        assert "larger aux_loss_coef (now 0.01)" in warning
    else:
        assert "layer 0 expert 2 (0.0%, 0.0% of those in new languages)" in warning
        assert "lower lpr_loss_coef (now 0.1)" in warning


def small_mixture(**options: Any) -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_hidden_layers=3, initializer_range=0.3, **sizes))
    config = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": [3, 1, 2], **options}
    return get_peft_model(base, get_peft_config(config)).train()


class OtherProcesses:
    """An accelerator that adds what other processes have; and what this one had."""

    device = torch.device("cpu")

    def __init__(self, *others: torch.Tensor) -> None:
        self.others = others
        self.own = torch.zeros(())

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.own = tensor
        return torch.stack([tensor, *self.others]).sum(dim=0)


def test_processes_with_other_losses_add_up() -> None:
    """One has no old-language token, so no such loss; another was given no batch at all."""
    from neuronmoe_plugins.integrations.llamafactory.run_log import mixture_shapes, reduced_sums

    model = small_mixture(aux_loss_coef=0.1)
    tokens = torch.arange(3, 35).view(4, 8)
    tagged = {"input_ids": tokens[:2], "labels": tokens[:2], "old_language_mask": torch.ones(2, 8)}
    untagged = {"input_ids": tokens[2:], "labels": tokens[2:]}
    vectors = []
    for coefficients, batches in (({"lpr_loss_coef": 0.2}, [tagged]), ({}, [untagged, untagged]), ({}, [])):
        model.peft_config["default"].lpr_loss_coef = coefficients.get("lpr_loss_coef")
        for batch in batches:
            model(**batch)
        accelerator = OtherProcesses(*vectors)
        sums = reduced_sums(SimpleNamespace(model=model, accelerator=accelerator), mixture_shapes(model))
        vectors.append(accelerator.own)
    assert sums.routing.num_tokens().tolist() == [48, 48]
    assert sums.routing.num_tokens("old").tolist() == [16, 16]
    assert sums.losses["lm_loss"][1] == 48
    means, alone = sums.means(), vectors[0].tolist()
    assert means["lpr_loss"] == pytest.approx(alone[4] / alone[5])
    assert "classify_loss" not in means
    assert sum(means[f"expert_share/layer_0/expert_{expert}"] for expert in range(3)) == pytest.approx(1)


def test_a_run_that_was_finished_keeps_its_end(tmp_path: Path) -> None:
    """Resumed after its last step, it has counted nothing, or what was summed up after the last log."""
    from neuronmoe_plugins.integrations.llamafactory.run_log import RoutingLog

    model = small_mixture()
    tokens = torch.arange(3, 35).view(4, 8)
    model(input_ids=tokens, labels=tokens)
    state = SimpleNamespace(global_step=4, max_steps=4)
    trainer = SimpleNamespace(
        model=model,
        accelerator=OtherProcesses(),
        state=state,
        args=SimpleNamespace(output_dir=str(tmp_path)),
        callback_handler=SimpleNamespace(callbacks=[]),
        is_world_process_zero=lambda: True,
        _globalstep_last_logged=3,
    )
    log = RoutingLog(trainer)
    log.on_train_begin(trainer.args, state, None)
    log.on_train_end(trainer.args, state, None)
    log.write()
    assert not list(tmp_path.iterdir())
    model(input_ids=tokens, labels=tokens)
    state.global_step = 5
    log.on_train_end(trainer.args, state, None)
    log.write()
    assert (tmp_path / "routing.json").exists()


def test_other_methods_write_nothing(moe_args: dict[str, Any], tmp_path: Path) -> None:
    del moe_args["ada_moe_num_experts_list"]
    train(moe_args | {"finetuning_type": "lora"}, tmp_path / "run", max_steps=1)
    assert losses(tmp_path / "run")[0].keys() == {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    assert not list((tmp_path / "run").glob("routing.*"))
