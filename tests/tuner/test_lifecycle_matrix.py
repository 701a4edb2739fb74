"""Each step of an adapter's life, with what it may save beside its layers: `moe`, and LoRA as control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from tuner.tiny import logits, moe_config, tiny_config, tiny_model

WEIGHTS = "adapter_model.safetensors"
Config = Callable[..., peft.PeftConfig]


def moe(**options: Any) -> peft.PeftConfig:
    return moe_config(num_experts=[3, 1, 2], **options)


def lora(**options: Any) -> peft.PeftConfig:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "up_proj"], "r": 2, **options})


both = pytest.mark.parametrize("method", [moe, lora])
# What is saved beside the method's layers -> names of its tensors in the file.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROWS = "model.embed_tokens.token_adapter.trainable_tokens_delta"
BESIDE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "head": ({"modules_to_save": ["lm_head"]}, {HEAD}),
    "both ends": ({"modules_to_save": ["embed_tokens", "lm_head"]}, {HEAD, EMBEDDING}),
    "norms": ({"modules_to_save": ["layers.1.input_layernorm"]}, {"model.layers.1.input_layernorm.weight"}),
    "tokens": ({"trainable_token_indices": [5, 3]}, {ROWS}),
    "tokens by module": ({"trainable_token_indices": {"embed_tokens": [5], "lm_head": [2, 7]}}, set()),
    "head and tokens": ({"modules_to_save": ["lm_head"], "trainable_token_indices": [5, 3]}, {HEAD, ROWS}),
}
OLD = not hasattr(BaseTuner, "delete_adapter")
if OLD:  # there, only an embedding has rows
    del BESIDE["tokens by module"]
# LoRA is the control of two cases, which its own tests have, too.
ALL = [(moe, name) for name in BESIDE] + [(lora, name) for name in ("both ends", "tokens")]
beside = pytest.mark.parametrize(("method", "name"), ALL)
TIED = [name for name in ("both ends", "tokens", "tokens by module", "head and tokens") if name in BESIDE]
old_host = pytest.mark.skipif(OLD, reason="peft 0.17 cannot activate an adapter that lacks what another has saved")


@cache
def made_once(tied: bool) -> nn.Module:
    return tiny_model(tie_word_embeddings=tied)


def base(tied: bool = False) -> nn.Module:
    return copy.deepcopy(made_once(tied))


def changed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every trainable parameter gets another value, as training would give it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "original_module" in name:
                continue
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def tensors_beside(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in tensors if "moe_" not in name and "lora_" not in name}


@pytest.mark.parametrize(
    ("method", "name", "tied"),
    [(*case, tied) for case in ALL for tied in ((False, True) if case[1] in TIED else (False,))],
)
def test_saved_and_loaded(method: Config, name: str, tied: bool, tmp_path: Path, batch: dict[str, Any]) -> None:
    options, expected_names = BESIDE[name]
    if tied and name in ("tokens by module", "head and tokens"):
        if method is moe:  # with LoRA, the model fails at its first call, in most versions
            with pytest.raises(ValueError, match=r"lm_head is tied to model\.embed_tokens and follows its rows"):
                get_peft_model(base(tied), method(**options))
        return
    model = changed(get_peft_model(base(tied), method(**options)))
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert name == "tokens by module" or tensors_beside(tensors) == expected_names
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(base(tied), tmp_path, adapter_name="el", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded, batch), expected)
        assert not any(parameter.is_meta for parameter in loaded.parameters())
        with loaded.disable_adapter():
            assert torch.equal(logits(loaded, batch), logits(made_once(tied), batch))


@beside
def test_disabled_copied_and_loaded_otherwise(method: Config, name: str, tmp_path: Path, batch: dict[str, Any]) -> None:
    """Without PEFT's class: by the functions that others call, and by transformers."""
    model = get_peft_model(base(), method(**BESIDE[name][0]))
    before = trainable(changed(model))
    expected = logits(model, batch)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(made_once(False), batch))
    assert torch.equal(logits(model, batch), expected)
    assert trainable(model) == before
    assert all("moe_" in key or "lora_" in key or "default" in key for key in before)
    fresh = get_peft_model(base(), method(**BESIDE[name][0]))
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(model))
    assert torch.equal(logits(fresh, batch), expected)
    assert torch.equal(logits(copy.deepcopy(model), batch), expected)
    if method is lora and name != "nothing":
        return  # transformers leaves what is saved beside its layers as it is in the base
    model.save_pretrained(tmp_path)
    plain = base()
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain, batch), expected)
    plain.disable_adapters()
    assert torch.equal(logits(plain, batch), logits(made_once(False), batch))


@both
@old_host
def test_several_adapters(method: Config, tmp_path: Path, batch: dict[str, Any]) -> None:
    options = {name: BESIDE[name][0] for name in ("both ends", "head", "nothing")}
    first, *others = options
    model = get_peft_model(base(), method(**options[first]), first)
    for name in others:
        model.add_adapter(name, method(**options[name]))
    expected = {}
    for seed, name in enumerate(options):
        model.set_adapter(name)
        # LoRA would train the base's own modules where an adapter has none.
        assert method is lora or not any("original_module" in key for key in trainable(changed(model, seed)))
        changed(model, seed)
    for name in options:
        model.set_adapter(name)
        expected[name] = logits(model, batch)
    model.save_pretrained(tmp_path)
    for name in options:
        assert tensors_beside(load_file(tmp_path / name / WEIGHTS)) == BESIDE[name][1]
        loaded = PeftModel.from_pretrained(base(), tmp_path / name)
        assert torch.equal(logits(loaded, batch), expected[name])
    model.delete_adapter(first)
    assert not any(f".{first}" in key for key, _ in model.named_parameters())
    for name in others:
        model.set_adapter(name)
        assert torch.equal(logits(model, batch), expected[name])
    loaded = PeftModel.from_pretrained(base(), tmp_path / first, adapter_name=first)
    loaded.load_adapter(tmp_path / "head", "head")
    assert torch.equal(logits(loaded, batch), expected[first])
    loaded.set_adapter("head")
    assert torch.equal(logits(loaded, batch), expected["head"])


TASKS = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification", "QUESTION_ANS": "QuestionAnswering"}


@both
@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_and_saves_its_head(method: Config, task: str, tmp_path: Path, batch: dict[str, Any]) -> None:
    def model_of_task(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        kind = getattr(transformers, f"AutoModelFor{TASKS[task]}")
        return kind.from_config(tiny_config("llama", num_labels=2 if task == "QUESTION_ANS" else 3))

    model_of_task(0).save_pretrained(tmp_path / "base")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels: dict[str, Any] = {"labels": torch.tensor([0, 2]) if task == "SEQ_CLS" else batch["labels"] % 3}
    if task == "QUESTION_ANS":
        labels = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    model = get_peft_model(model_of_task(0), method(task_type=task))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(**inputs, **labels).loss.backward()
    optimizer.step()
    head = next(p for name, p in model.named_parameters() if ".modules_to_save.default.weight" in name)
    original = next(p for name, p in model.named_parameters() if ".original_module.weight" in name)
    assert not torch.equal(head, original)
    model.save_pretrained(tmp_path / "adapter")

    def outputs(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return next(iter(model.eval()(**inputs).values()))

    # A base without the task's head gets a new, random one, which the adapter's takes the place of.
    for low_cpu_mem_usage in (False, True):
        fresh = model_of_task(0)
        nn.init.normal_(next(fresh.children()) and list(fresh.children())[-1].weight)
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(outputs(loaded), outputs(model))


@both
def test_generation_uses_what_is_saved(method: Config, batch: dict[str, Any]) -> None:
    model = changed(get_peft_model(base(), method(modules_to_save=["lm_head", "embed_tokens"])))
    prompt = batch["input_ids"][:1]
    generated = model.generate(input_ids=prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        for _ in range(4):
            prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, prompt)


@both
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}])
def test_another_dtype(method: Config, options: dict[str, Any], tmp_path: Path, batch: dict[str, Any]) -> None:
    """Trained in float32 as LLaMA-Factory does, used in bfloat16."""
    changed(get_peft_model(base(), method(modules_to_save=["lm_head"]))).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base().bfloat16(), tmp_path, autocast_adapter_dtype=False, **options)
    if method is moe or not options:
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert logits(loaded, batch).dtype == torch.bfloat16


def test_what_a_method_refuses(tmp_path: Path, batch: dict[str, Any]) -> None:
    model = changed(get_peft_model(base(), lora()))
    expected = logits(model, batch)
    torch.testing.assert_close(logits(model.merge_and_unload(), batch), expected)
    model = get_peft_model(base(), moe(modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="MOE"):
        peft.PeftMixedModel(base(), moe())
    with pytest.raises(ValueError, match="MOE"):
        model.save_pretrained(tmp_path)
        hotswap_adapter(model, tmp_path, "default")
    torch.testing.assert_close(logits(changed(model).unload(), batch), logits(made_once(False), batch), atol=0, rtol=0)


def test_stage_2_keeps_what_is_saved_as_it_is(tmp_path: Path, batch: dict[str, Any]) -> None:
    options = {"modules_to_save": ["lm_head"], "trainable_token_indices": [3, 5]}
    changed(get_peft_model(base(), moe(**options))).save_pretrained(tmp_path)
    stage_2 = peft.PeftConfig.from_pretrained(tmp_path)
    stage_2.train_only_router = True
    model = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True, config=stage_2)
    for step in (lambda: None, lambda: model.set_adapter("default"), lambda: model.disable_adapter().__enter__()):
        step()
        model.base_model.enable_adapter_layers()
        assert {name.rsplit(".", 3)[1] for name in trainable(model)} == {"moe_router"}
    classifier = get_peft_model(
        transformers.AutoModelForSequenceClassification.from_config(tiny_config("llama")),
        moe(train_only_router=True, task_type="SEQ_CLS"),
    )
    assert {name.rsplit(".", 3)[1] for name in trainable(classifier)} == {"moe_router"}


DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(f"base_model.model.{HEAD}"), r"it lacks lm_head\.weight\."),
    "rows missing": (lambda t: t.pop(f"base_model.model.{ROWS}"), r"it lacks .*trainable_tokens_delta\."),
    "smaller": (
        lambda t: t.update({f"base_model.model.{HEAD}": torch.ones(60, 16)}),
        r"in a wrong shape, lm_head\.weight \(60, 16\) instead of \(61, 16\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_without_what_is_saved_is_refused(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    get_peft_model(base(), moe(**BESIDE["head and tokens"][0])).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    for load in (lambda: PeftModel.from_pretrained(base(), tmp_path), lambda: base().load_adapter(str(tmp_path))):
        with pytest.raises(ValueError, match=message):
            load()


def test_a_configuration_without_what_was_saved_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = changed(get_peft_model(base(), moe(modules_to_save=["lm_head"])))
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(base(), tmp_path)
    assert not caplog.records
    PeftModel.from_pretrained(base(), tmp_path, config=moe(train_only_router=True), is_trainable=True)
    assert "has other weights than the base model, which they replace: lm_head.weight; if it was" in caplog.text


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a typing error": ({"modules_to_save": ["lm_haed"]}, "^modules_to_save names lm_haed, which LlamaForCausalLM does"),
    "a text": ({"modules_to_save": "lm_head"}, "^modules_to_save must be a list of names of modules; got 'lm_head'"),
    "a mixture": (
        {"modules_to_save": ["mlp"]},
        r"^modules_to_save names mlp, but model\.layers\.0\.mlp becomes a mixture, .*: remove it",
    ),
    "a part of one": ({"modules_to_save": ["up_proj"]}, r"names up_proj, but model\.layers\.0\.mlp becomes"),
    "what holds one": ({"modules_to_save": ["layers.2"]}, r"names layers\.2, but model\.layers\.2\.mlp becomes"),
    "a token that is not there": (
        {"trainable_token_indices": [61]},
        "has token 61, but model.embed_tokens has 61 rows",
    ),
    "a token twice": ({"trainable_token_indices": [6, 6]}, "trainable_token_indices has an index twice"),
    "no tokens": (
        {"trainable_token_indices": []},
        r"trainable_token_indices must be a list of tokens' indices, .* \[\]",
    ),
    "tokens by name": ({"trainable_token_indices": ["a"]}, r"must be a list of tokens' indices, .*; got \['a'\]"),
    "an unknown module": ({"trainable_token_indices": {"wte": [1]}}, "^trainable_token_indices names wte, which"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_saved_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(base(), moe(**options))


def test_a_dense_layer_may_be_trained_whole() -> None:
    model = get_peft_model(base(), moe(modules_to_save=["layers.1.mlp"]))
    assert any(".layers.1.mlp.modules_to_save.default.up_proj" in name for name in trainable(model))
