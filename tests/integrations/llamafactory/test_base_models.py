"""Base models that cannot become mixtures, and adapters of other base models, by their files' headers alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal, save_adapter, train

GOLDEN = Path(__file__).parents[2] / "data" / "moe_a"
Save = Callable[..., str]


@pytest.fixture
def stage2_args(moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run that continues an adapter of the tiny Llama."""
    path = save_adapter(tmp_path / "adapter", tiny_model_dir, num_experts=[3, 1, 1, 2])
    return {**moe_args, "adapter_name_or_path": path, "ada_moe_num_experts_list": "3,1,1,2"}


@pytest.fixture
def save_model(tiny_model_dir: Path, tmp_path: Path) -> Save:
    """Save a random model like the tiny Llama but for some settings."""

    def save(model_type: str = "llama", **settings: Any) -> str:
        from transformers import AutoConfig, AutoModelForCausalLM

        like = json.loads((tiny_model_dir / "config.json").read_text())
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = AutoConfig.for_model(model_type, **{name: like[name] for name in names} | settings)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
        return str(tmp_path / "other")

    return save


def test_models_that_cannot_become_mixtures(moe_args: dict[str, Any], save_model: Save, tmp_path: Path) -> None:
    message = "model_name_or_path: .* has no MLP that can become a mixture"
    assert re.search(message, refusal(moe_args | {"model_name_or_path": save_model("mixtral", num_local_experts=2)}))
    attention = {"moe_expert_rank": 4, "moe_targets": "attention"}
    message = (
        r"^moe_targets is attention: .*layers\.0 of RecurrentGemmaForCausalLM has no attention that can .* targets mlp"
    )
    assert re.search(message, refusal(moe_args | attention | {"model_name_or_path": save_model("recurrent_gemma")}))
    message = f"^model_name_or_path: {tmp_path} has no usable config.json: "
    assert re.search(message, refusal(moe_args | {"model_name_or_path": str(tmp_path)}))


def test_ranks_that_the_model_or_the_adapter_does_not_have(
    moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    message = (
        r"^moe_expert_rank is 33, but model\.layers\.0\.mlp\.gate_proj is 48 x 32: give at most 32, or no rank for"
    )
    assert re.search(message, refusal(moe_args | {"moe_expert_rank": "33"}))
    extended = {"old_moe_num_experts_list": "2,1,1,2"}
    compress = (
        r"remove the key, or take what `neuronmoe compress` makes of the adapter, the nearest experts of that rank"
    )
    for rank, kind in ((None, "full copies of the MLP"), (2, "expert_rank 2")):
        low_rank = {} if rank is None else {"expert_rank": rank}
        path = save_adapter(tmp_path / str(rank), tiny_model_dir, num_experts=[2, 1, 1, 2], **low_rank)
        continued = moe_args | {"adapter_name_or_path": path, "moe_expert_rank": 4}
        for more in ({"ada_moe_num_experts_list": None}, extended):
            assert re.search(
                f"^moe_expert_rank is 4, but the adapter in {path} has {kind}: {compress}$", refusal(continued | more)
            )


@pytest.mark.parametrize("key", ["model_name_or_path", "adapter_name_or_path"])
def test_what_is_not_there_is_said_to_be_that(
    moe_args: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llamafactory.model.loader as host

    monkeypatch.setattr(host, "load_config", None) if key == "model_name_or_path" else None
    for path, reason in (
        ("nowhere", "there is no such folder, nor is it in the hub's cache, and the hub cannot be asked"),
        ("./nowhere/at/all", "and is no name on the Hugging Face Hub"),
    ):
        line = refusal(moe_args | {key: path})
        assert line.startswith(f"{key}: {path} does not exist")
        assert reason in line


def test_quantised_models(moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    from llamafactory.hparams import get_train_args

    shutil.copytree(tiny_model_dir, tmp_path / "quantised")
    config = json.loads((tiny_model_dir / "config.json").read_text())
    args = moe_args | {"model_name_or_path": str(tmp_path / "quantised")}

    def quantise(**settings: Any) -> None:
        text = json.dumps(config | {"quantization_config": settings})
        (tmp_path / "quantised" / "config.json").write_text(text)

    for method, more in (("gptq", {"bits": 4}), ("bitsandbytes", {"load_in_8bit": True}), ("fp8", {})):
        quantise(quant_method=method, **more)
        assert refusal(args) == (
            f"model_name_or_path: {tmp_path / 'quantised'} is quantised ({method}): take it unquantised, or in 4 bits "
            "with bitsandbytes"
        )
    quantise(quant_method="bitsandbytes", load_in_4bit=True)
    assert get_train_args(args)[3].finetuning_type == "moe"


def test_low_rank_experts_are_trained_beside_a_base_in_four_bits(
    moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    shutil.copytree(tiny_model_dir, tmp_path / "base")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=four_bits).save_pretrained(
        tmp_path / "base"
    )
    saved = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    args = moe_args | {"model_name_or_path": str(tmp_path / "base"), "moe_expert_rank": 4, "learning_rate": 0.02}
    steps = train(args, tmp_path / "stage1", max_steps=8)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    routers = {"adapter_name_or_path": str(tmp_path / "stage1"), "train_only_router": True}
    (first, *_) = train(args | routers | {"ada_moe_num_experts_list": None}, tmp_path / "stage2")
    assert first["loss"] == pytest.approx(steps[-1]["loss"], abs=0.3), "what stage 1 saved"
    assert {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()} == saved


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden_size": 64}, r"layers.0.mlp.moe_gate_proj \(2, 48, 32\) instead of \(2, 48, 64\)"),
        ({"intermediate_size": 64}, r"layers.0.mlp.moe_down_proj \(2, 32, 48\) instead of \(2, 32, 64\)"),
        ({"model_type": "phi"}, "it lacks model.layers.0.mlp.moe_fc1"),
        (
            {"neuronmoe_vocabulary": {"first": 259, "tokens": 2, "modules": ["embed_tokens"], "hash": "1a2b3c4d"}},
            r"whose new tokens are none, but those of .* are 2 from 259 on \(1a2b3c4d\): name the adapter's base$",
        ),
    ],
    ids=["hidden", "intermediate", "family", "new tokens"],
)
def test_adapters_that_do_not_fit(
    stage2_args: dict[str, Any], save_model: Save, model: dict[str, Any], message: str
) -> None:
    prefix = "^adapter_name_or_path: .*adapter is no adapter of this base model: .*"
    assert re.search(prefix + message, refusal(stage2_args | {"model_name_or_path": save_model(**model)}))


def test_fewer_layers_than_the_model(
    moe_args: dict[str, Any], save_model: Save, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = save_adapter(tmp_path / "adapter", tiny_model_dir, num_experts=2)
    args = moe_args | {"adapter_name_or_path": path, "model_name_or_path": save_model(num_hidden_layers=5)}
    del args["ada_moe_num_experts_list"]
    assert re.search(r"is no adapter of this base model: .* lacks model\.layers\.4\.mlp\.moe_", refusal(args))


def test_published_adapters(
    moe_args: dict[str, Any], tiny_model_dir: Path, save_model: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.hparams import get_train_args

    args = moe_args | {"model_name_or_path": str(GOLDEN / "base"), "adapter_name_or_path": str(GOLDEN / "adapter")}
    del args["ada_moe_num_experts_list"]
    assert get_train_args(args)[3].finetuning_type == "moe"
    message = r"is no adapter of this base model: .*in a wrong shape, .*moe_gate_proj"
    assert re.search(message, refusal(args | {"model_name_or_path": save_model(hidden_size=64)}))


@pytest.fixture
def forget(stage2_args: dict[str, Any]) -> Callable[..., None]:
    """Give the adapter the configuration of one of an earlier version, which names its base alone."""

    def change(**fields: Any) -> None:
        config = Path(stage2_args["adapter_name_or_path"]) / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_fingerprint": None} | fields))

    return change


@pytest.mark.parametrize("knows_its_base", [True, False])
def test_another_model_of_the_same_shape(
    stage2_args: dict[str, Any],
    tiny_model_dir: Path,
    save_model: Save,
    forget: Callable[..., None],
    knows_its_base: bool,
) -> None:
    if not knows_its_base:
        forget()
    what = f"^model_name_or_path: the adapter in .*adapter is one of {tiny_model_dir}, "
    for settings, message in (
        ({"model_type": "qwen2", "num_key_value_heads": 2}, "a llama model, but .*other is a qwen2 one$"),
        ({}, r"but .*other has other weights \(in model.layers.0.mlp.down_proj.weight\): name the adapter's base, "),
    ):
        assert re.search(what + message, refusal(stage2_args | {"model_name_or_path": save_model(**settings)}))


def warnings_of(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the run warns of, about its adapter."""
    import llamafactory.hparams.parser as host

    lines: list[str] = []
    monkeypatch.setattr(host.logger, "warning_rank0", lines.append, raising=False)
    host.get_train_args(args)
    return [line for line in lines if "adapter" in line]


def test_the_same_model_elsewhere(
    stage2_args: dict[str, Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[..., None],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_model_dir, tmp_path / "copy")
    half = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for place in ("copy", "sharded"):
        assert warnings_of(stage2_args | {"model_name_or_path": str(tmp_path / place)}, monkeypatch) == []
    adapter = stage2_args["adapter_name_or_path"]
    for named in ("owner/model", "/gone/away"):
        forget(base_model_name_or_path=named)
        assert warnings_of(stage2_args, monkeypatch) == [
            f"the adapter in {adapter} is one of {named}, which is not on this machine: make sure that "
            f"{tiny_model_dir} is the same model"
        ]
    forget(base_model_name_or_path=str(tiny_model_dir))
    for place in ("copy", "sharded"):
        assert warnings_of(stage2_args | {"model_name_or_path": str(tmp_path / place)}, monkeypatch) == []


def test_a_model_that_is_not_here_is_known_by_its_adapter(
    stage2_args: dict[str, Any], save_model: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(stage2_args["adapter_name_or_path"]) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/model"}))
    assert warnings_of(stage2_args, monkeypatch) == []
    message = "one of owner/model, but .*other has other weights"
    assert re.search(message, refusal(stage2_args | {"model_name_or_path": save_model(num_key_value_heads=2)}))


def test_adapters_of_the_hub(
    stage2_args: dict[str, Any], save_model: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache" / "models--owner--adapter"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    shutil.copytree(stage2_args["adapter_name_or_path"], cached / "snapshots" / ("a" * 40))
    args = stage2_args | {"adapter_name_or_path": "owner/adapter", "cache_dir": str(tmp_path / "cache")}
    assert warnings_of(args, monkeypatch) == []
    other = args | {"model_name_or_path": save_model(hidden_size=64)}
    assert "owner/adapter is no adapter of this base model" in refusal(other)
    # What is not on this machine is looked at when it is loaded.
    (cached / "snapshots" / ("a" * 40) / "adapter_model.safetensors").unlink()
    assert warnings_of(args, monkeypatch) == []


def test_damaged_adapters(stage2_args: dict[str, Any]) -> None:
    weights = Path(stage2_args["adapter_name_or_path"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    assert re.search("^adapter_name_or_path: .*adapter_model.safetensors cannot be read: ", refusal(stage2_args))
    weights.unlink()
    assert re.search("^adapter_name_or_path: .*adapter has no adapter_model.safetensors", refusal(stage2_args))
