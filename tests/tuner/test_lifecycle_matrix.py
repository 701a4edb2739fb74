"""Each step of an adapter's life, with what it may save beside its layers: `moe`, and LoRA as control."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch import nn

from tuner.lifecycles import (
    BESIDE,
    OLD,
    TOO_OLD_FOR_TRANSFORMERS,
    WEIGHTS,
    Config,
    base,
    changed,
    lora,
    made_once,
    moe,
    ranks,
    tensors_beside,
    trainable,
)
from tuner.tiny import logits, tiny_config

methods = pytest.mark.parametrize("method", [moe, ranks, lora])
# Full copies and experts of low rank take turns; LoRA is the control of two cases, which its own tests have, too.
ALL = [
    *((ranks if place % 2 else moe, name) for place, name in enumerate(BESIDE)),
    *((method, name) for method in (ranks, lora) for name in ("both ends", "tokens")),
]
beside = pytest.mark.parametrize(("method", "name"), ALL)
TIED = [name for name in ("both ends", "tokens", "tokens by module", "head and tokens") if name in BESIDE]
old_host = pytest.mark.skipif(OLD, reason="peft 0.17 cannot activate an adapter that lacks what another has saved")


@pytest.mark.parametrize(
    ("method", "name", "tied"),
    [(*case, tied) for case in ALL for tied in ((False, True) if case[1] in TIED else (False,))],
)
def test_saved_and_loaded(method: Config, name: str, tied: bool, tmp_path: Path, batch: dict[str, Any]) -> None:
    options, expected_names = BESIDE[name]
    if tied and name in ("tokens by module", "head and tokens"):
        if method is not lora:  # with LoRA, the model fails at its first call, in most versions
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
    if TOO_OLD_FOR_TRANSFORMERS:
        return
    plain.disable_adapters()
    assert torch.equal(logits(plain, batch), logits(made_once(False), batch))


@methods
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


@pytest.mark.parametrize(
    ("method", "task"),
    [(moe, "SEQ_CLS"), (ranks, "TOKEN_CLS"), (moe, "QUESTION_ANS"), *((lora, task) for task in TASKS)],
)
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


@methods
def test_generation_uses_what_is_saved(method: Config, batch: dict[str, Any]) -> None:
    model = changed(get_peft_model(base(), method(modules_to_save=["lm_head", "embed_tokens"])))
    prompt = batch["input_ids"][:1]
    generated = model.generate(input_ids=prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        for _ in range(4):
            prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, prompt)


@methods
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}])
def test_another_dtype(method: Config, options: dict[str, Any], tmp_path: Path, batch: dict[str, Any]) -> None:
    """Trained in float32 as LLaMA-Factory does, used in bfloat16."""
    changed(get_peft_model(base(), method(modules_to_save=["lm_head"]))).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base().bfloat16(), tmp_path, autocast_adapter_dtype=False, **options)
    if method is not lora or not options:
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
