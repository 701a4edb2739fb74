"""`train_new_tokens`: the rows by which a vocabulary was extended, from stage 1 to stage 2, beside the experts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file
from training_runs import refusal, save_adapter, stage1_arguments, train

from neuronmoe_plugins.autoload import outcomes
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.host_versions import trains_rows_of_heads
from neuronmoe_plugins.integrations.llamafactory.learning_rates import check_learning_rates
from vocabulary.greek import extend, save_base

WEIGHTS = "adapter_model.safetensors"
ROWS = "token_adapter.trainable_tokens_delta"
FIRST, TOKENS, RATE, ROUTER_RATE = 401, 10, 0.01, 0.002
OF_STAGE1 = ("ada_moe_num_experts_list", "router_learning_rate")
TRAINED = {"train_new_tokens": True, "new_token_learning_rate": RATE, "lr_scheduler_type": "constant"}
MODULES = {True: ["model.embed_tokens"], False: ["lm_head", "model.embed_tokens"]}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def is_tied(request: pytest.FixtureRequest) -> bool:
    if not request.param and not trains_rows_of_heads():
        pytest.skip("peft 0.17 cannot train rows of a head of its own")
    return bool(request.param)


@pytest.fixture(scope="module")
def extended(is_tied: bool, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    learnt = [json.loads(line)["text"] for line in (data_dir / "el_even.jsonl").read_text("utf-8").splitlines()]
    extend(folder, save_base(folder / "base", tied=is_tied), tokens=TOKENS, learnt=learnt)
    return folder / "extended"


@pytest.fixture(scope="module")
def stage1(extended: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of a run with checkpoints, and its arguments."""
    output = tmp_path_factory.mktemp("stage1") / "run"
    more = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-4}
    more["router_learning_rate"] = ROUTER_RATE
    arguments = stage1_arguments(extended, data_dir, output) | TRAINED | more
    train(arguments, output)
    return output, arguments


def rows_of(adapter: Path) -> dict[str, torch.Tensor]:
    """Name of a module -> its rows in an adapter's file."""
    weights = load_file(adapter / WEIGHTS)
    return {
        name.removeprefix("base_model.model.").removesuffix(f".{ROWS}"): weight
        for name, weight in weights.items()
        if name.endswith(ROWS)
    }


def test_the_new_rows_alone_are_trained_and_saved(
    stage1: tuple[Path, dict[str, Any]], extended: Path, is_tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    output, _ = stage1
    rows = rows_of(output)
    assert sorted(rows) == MODULES[is_tied]
    base = load_file(extended / "model.safetensors")
    for name, trained in rows.items():
        assert trained.shape == (TOKENS, 32)
        assert not trained.equal(base[f"{name}.weight"][FIRST : FIRST + TOKENS])
    # A plain PEFT program: the base with these rows in the place of its own, and the experts.
    text = torch.tensor([[1, 70, FIRST, FIRST + 3, 90, FIRST + 9]])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(extended), output).eval()
    by_hand = AutoModelForCausalLM.from_pretrained(extended)
    with torch.no_grad():
        for name, trained in rows.items():
            by_hand.get_submodule(name).weight[FIRST : FIRST + TOKENS] = trained
    by_hand.save_pretrained(output / "by_hand")
    config = json.loads((output / "adapter_config.json").read_text())
    (output / "by_hand" / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": None}))
    from safetensors.torch import save_file

    experts = {name: weight for name, weight in load_file(output / WEIGHTS).items() if ROWS not in name}
    save_file(experts, output / "by_hand" / WEIGHTS, metadata={"format": "pt"})
    expected = PeftModel.from_pretrained(by_hand, output / "by_hand").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(text).logits, expected(text).logits, rtol=0, atol=1e-6)


def test_they_have_their_own_learning_rate(stage1: tuple[Path, dict[str, Any]], extended: Path) -> None:
    """The first step of Adam is as long as the rate, wherever there is a gradient."""
    step = stage1[0] / "checkpoint-1"
    base = load_file(extended / "model.safetensors")
    for name, trained in rows_of(step).items():
        moved = (trained - base[f"{name}.weight"][FIRST : FIRST + TOKENS]).abs()
        assert moved.max() == pytest.approx(RATE, rel=1e-2)
    weights = load_file(step / WEIGHTS)
    expert = weights["base_model.model.model.layers.0.mlp.moe_up_proj"][0]
    assert (expert - base["model.layers.0.mlp.up_proj.weight"]).abs().max() == pytest.approx(1e-4, rel=1e-2)
    # A router starts at random: of its steps the second is seen, which is at most as long as the rate.
    router = "base_model.model.model.layers.0.mlp.moe_router.weight"
    moved = (load_file(stage1[0] / WEIGHTS)[router] - weights[router]).abs().max()
    assert ROUTER_RATE / 2 < moved < ROUTER_RATE * 1.01


@pytest.mark.parametrize("is_tied", [False], indirect=True)
def test_a_run_that_is_resumed_goes_on_with_both_rates(stage1: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, arguments = stage1
    checkpoint = str(output / "checkpoint-1")
    train(arguments, tmp_path / "resumed", resume_from_checkpoint=checkpoint, save_strategy="no")
    expected, resumed = (load_file(folder / WEIGHTS) for folder in (output, tmp_path / "resumed"))
    assert resumed.keys() == expected.keys()
    assert all(tensor.equal(resumed[name]) for name, tensor in expected.items())
    assert not any(rows.equal(rows_of(output / "checkpoint-1")[name]) for name, rows in rows_of(output).items())


@pytest.mark.parametrize("is_tied", [True], indirect=True)
def test_stage_2_keeps_them(stage1: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, arguments = stage1
    stage2 = arguments | {"adapter_name_or_path": str(output), "train_only_router": True}
    stage2 = {name: value for name, value in stage2.items() if name not in (*TRAINED, *OF_STAGE1)}
    train(stage2, tmp_path / "stage2", max_steps=1, save_strategy="no")
    before, after = rows_of(output), rows_of(tmp_path / "stage2")
    assert after.keys() == before.keys() and all(after[name].equal(rows) for name, rows in before.items())
    assert PeftConfig.from_pretrained(tmp_path / "stage2").trainable_token_indices
    for key, value in TRAINED.items():
        if key != "lr_scheduler_type":
            assert " has no effect with" in refusal(stage2 | {key: value, "output_dir": str(tmp_path / "new")})
    assert refusal(stage2 | {"router_learning_rate": 1e-3, "output_dir": str(tmp_path / "new")}) == (
        "router_learning_rate has no effect with train_only_router: give learning_rate"
    )


@pytest.mark.parametrize("is_tied", [True], indirect=True)
def test_what_would_train_nothing_is_refused(
    moe_args: dict[str, Any], extended: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert refusal(moe_args | TRAINED) == (
        "train_new_tokens: the base model has no new tokens: extend it by `neuronmoe vocabulary` first, and name "
        "that one"
    )
    args = moe_args | {"model_name_or_path": str(extended)}
    rate = {"new_token_learning_rate": RATE}
    assert refusal(args | rate) == "new_token_learning_rate has no effect without train_new_tokens: true"
    assert refusal(args | TRAINED | {"new_token_learning_rate": -1}) == (
        "new_token_learning_rate must not be negative; got -1"
    )
    adapter = save_adapter(tmp_path / "adapter", extended, num_experts=[3, 1, 1, 2])
    assert refusal(args | TRAINED | {"adapter_name_or_path": adapter}).startswith(
        f"train_new_tokens: the adapter in {adapter} has no rows of new tokens, with which one has to start"
    )
    assert "embed_tokens whole, of which " in refusal(args | TRAINED | {"additional_target": "embed_tokens"})
    other = save_adapter(tmp_path / "other", tiny_model_dir, num_experts=[3, 1, 1, 2])
    assert f"whose new tokens are none, but those of {extended} are {TOKENS} from {FIRST} on (" in refusal(
        args | {"adapter_name_or_path": other}
    )


@pytest.mark.parametrize("named", ["optimizer", "scheduler"])
def test_what_deepspeed_makes_itself_would_have_one_rate(named: str) -> None:
    """Its schedulers set the rate of every group to theirs."""
    args = SimpleNamespace(hf_deepspeed_config=SimpleNamespace(config={named: {"type": "WarmupLR"}}))
    given = SimpleNamespace(train_only_router=False, router_learning_rate=1e-4, new_token_learning_rate=None)
    message = f"router_learning_rate has no effect where deepspeed names its {named}: remove {named} from its file"
    with pytest.raises(UserError, match=f"^{message}$"):
        check_learning_rates(given, args)


@pytest.mark.parametrize("is_tied", [True], indirect=True)
def test_zero3_trains_them_with_the_hook_that_reads_them(
    moe_args: dict[str, Any], extended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.hparams import get_train_args

    from neuronmoe_plugins.integrations.llamafactory import checks

    args = moe_args | TRAINED | {"model_name_or_path": str(extended)}
    monkeypatch.setattr(checks, "is_deepspeed_zero3_enabled", lambda: True)
    assert get_train_args(args)[3].train_new_tokens
    monkeypatch.setitem(outcomes, "peft.tuners.trainable_tokens.layer", AttributeError("gone"))
    assert "cannot extend peft.tuners.trainable_tokens.layer (AttributeError: gone); run " in refusal(args)


def test_rows_are_read_where_peft_asks_for_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def current_device() -> int:
        raise AssertionError("PEFT's own")

    layer = TrainableTokensLayer(torch.nn.Embedding(5, 3), "default", token_indices=[])
    weight: Any = layer.base_layer.weight
    monkeypatch.setattr(torch.cuda, "current_device", current_device)
    for others in (weight, SimpleNamespace(is_cuda=True, ds_id=0)):
        with pytest.raises(AssertionError, match="PEFT's own"):
            layer._collect_token_weights(others, [3, 1], 3)
    weight.ds_id = 0
    rows = layer._collect_token_weights(weight, [3, 1], 3)
    assert rows.equal(weight[[3, 1]]) and not rows.requires_grad


def test_a_peft_that_cannot_train_rows_of_heads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronmoe_plugins.errors import UserError
    from neuronmoe_plugins.integrations.llamafactory import adapter
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments

    monkeypatch.setattr(adapter, "trains_rows_of_heads", lambda: False)
    asked = MoeFinetuningArguments(finetuning_type="moe", moe_num_experts=2, train_new_tokens=True)
    with pytest.raises(UserError, match=r"rows of its own, .* cannot train: install peft 0\.18 or later$"):
        adapter.make_config(asked, 4, None, None, {"embed_tokens": [4], "lm_head": [4]})
