"""Adapters of every kind: published, with groups, an extension of an extension, other families of MLPs, bfloat16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronmoe_plugins import MoeConfig, SpecialiseOptions, specialise
from neuronmoe_plugins.convert import convert
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.places import find_mixtures
from neuronmoe_plugins.specialisation.mixtures import projection_of
from neuronmoe_plugins.specialisation.specialise import require_mixture
from specialisation.by_definition import by_definition
from specialisation.extending import (
    EXPERTS,
    counts,
    load_extended,
    observed,
    save_adapter,
    scores_in,
    tokens_of,
)
from tuner.tiny import GOLDEN, moe_config, randomised, tiny_model

SENTENCES = [[1, *range(3, 3 + length)] for length in (5, 1, 17, 9, 30, 2)]
PROJECTIONS = {
    "llama": {"gate_proj": 24, "up_proj": 24, "down_proj": 16},
    "phi3": {"gate_up_proj": 48, "down_proj": 16},
    "gpt_neox": {"dense_h_to_4h": 24, "dense_4h_to_h": 16},
    "phi": {"fc1": 24, "fc2": 16},
}


def test_published_adapter_gives_what_the_converted_one_gives(
    options: SpecialiseOptions, adapters: dict[int, Path], result: Any, tmp_path: Path, without_pictures: None
) -> None:
    assert convert(adapters[2], tmp_path / "published") == "published"
    published = specialise(replace(options, adapter=str(tmp_path / "published"), output=tmp_path / "out"))
    assert (published.experts, published.routing) == (result[0].experts, result[0].routing)
    assert scores_in(tmp_path / "out") == scores_in(result[1])


def test_experts_in_attention_are_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), moe_config(num_experts=2, expert_rank=4, targets="both"))
    with pytest.raises(
        UserError, match=r"^the adapter has experts in attention \(targets\), and only those of MLPs can"
    ):
        find_mixtures(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"^ADAPTER {tmp_path} has experts in attention \(targets\), and only those of"
    ):
        require_mixture("ADAPTER", str(tmp_path))


def test_adapter_of_the_published_code(tmp_path: Path) -> None:
    """Its experts as it numbers them: the first of its list comes after the base."""
    from safetensors.torch import load_file

    model = load_extended(GOLDEN / "base", GOLDEN / "adapter")
    convert(GOLDEN / "adapter", tmp_path / "ours")
    published, ours = (
        observed(extended, SENTENCES) for extended in (model, load_extended(GOLDEN / "base", tmp_path / "ours"))
    )
    assert published.keys() == ours.keys()
    assert all(np.array_equal(published[key], ours[key], equal_nan=True) for key in published)
    tensors = load_file(GOLDEN / "adapter" / "adapter_model.safetensors")
    topk = int(model.peft_config["default"].topk)
    expected = by_definition(model, SENTENCES, topk)
    for (layer, expert, projection), means in expected.means.items():
        values = published[projection_of(layer, expert, projection)]
        np.testing.assert_allclose(values[list(means)], list(means.values()), rtol=1e-4, atol=1e-5)
        if expert:
            file_name = f"base_model.model.model.layers.{layer}.mlp.moe_experts.{expert - 1}.{projection}.weight"
            weight = getattr(find_mixtures(model)[layer], f"moe_{projection}")["default"][expert - 1]
            torch.testing.assert_close(weight, tensors[file_name].to(weight))


@pytest.mark.parametrize("family", PROJECTIONS)
def test_families(family: str) -> None:
    """A fresh mixture's experts are copies: all give what the MLP's own layers give for the tokens that are theirs."""
    torch.manual_seed(5)
    model = get_peft_model(tiny_model(family), moe_config(num_experts=[3, 1, 2], topk=3)).eval()
    pooled = observed(model, SENTENCES, batch_size=4)
    assert {key for key in pooled if key[0] == 1} == set()
    for name, units in PROJECTIONS[family].items():
        linear = getattr(find_mixtures(model)[0].get_base_layer(), name)
        outputs: list[torch.Tensor] = []
        hook = linear.register_forward_hook(lambda _m, _i, output, seen=outputs: seen.append(output))
        with torch.no_grad():
            for ids in SENTENCES:  # every token chooses all experts, so that the base sees each once
                model(input_ids=torch.tensor([ids]))
        hook.remove()
        means = np.array([output.reshape(-1, units).mean(dim=0).numpy() for output in outputs])
        for expert in range(3):
            np.testing.assert_allclose(pooled[projection_of(0, expert, name)], means, rtol=1e-5, atol=1e-5)
    assert pooled[0, "routing"][:, :3].tolist() == [[len(ids)] * 3 for ids in SENTENCES]


@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_family_without_a_gate(family: str, options: SpecialiseOptions, tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    save_adapter(tmp_path / "model", tmp_path / "adapter", [3, 1, 2])
    names = {"model": str(tmp_path / "model"), "adapter": str(tmp_path / "adapter"), "output": tmp_path / "out"}
    found = specialise(replace(options, **names))
    assert {row.neurons for row in found.experts} == {24 + 16}
    assert {key[2] for key in scores_in(tmp_path / "out")} == set(PROJECTIONS[family])
    assert sum(row.high_ap or 0 for row in found.experts) > 0


def test_bfloat16(options: SpecialiseOptions, result: Any, tmp_path: Path, without_pictures: None) -> None:
    found = specialise(replace(options, dtype="bfloat16", output=tmp_path / "out"))
    assert found.settings["dtype"] == "bfloat16"
    high = sum(row.high_ap or 0 for row in found.experts)
    assert high == pytest.approx(sum(row.high_ap or 0 for row in result[0].experts), rel=0.3)
    assert high > 20
    for row, precise in zip(found.routing, result[0].routing, strict=True):
        assert row.tokens == precise.tokens
        assert sum(row.expert_tokens) == 2 * row.tokens
        assert row.entropy == pytest.approx(precise.entropy, abs=0.02)
    # Activations are rounded, their means are not.
    token_ids = tokens_of(options.model, ["abc", "αβγδ abc abc"])
    pooled = observed(load_extended(options.model, options.adapter, "bfloat16"), token_ids)
    values = pooled[projection_of(0, 0, "gate_proj")]
    assert values.dtype == np.float32
    assert not np.array_equal(torch.tensor(values).bfloat16().float().numpy(), values)


def test_language_groups(
    options: SpecialiseOptions, tiny_model_dir: Path, tmp_path: Path, without_pictures: None
) -> None:
    """A sentence in group 0 uses the base alone, one in group 1 the old experts too, and padding decides nothing."""
    groups = {"old_num_experts": [2, 1, 2, 1], "group_nums": [3, 0, 3, 0]}
    adapter = save_adapter(tiny_model_dir, tmp_path / "adapter", [4, 1, 3, 1], topk=2, **groups)
    found = specialise(replace(options, adapter=str(adapter), output=tmp_path / "out"))
    for row in found.routing:
        pairs = sum(row.pairs.values())
        assert sum(row.expert_tokens) == row.tokens + pairs  # a second choice where there may be one
        assert sum(weight * count for weight, count in zip(row.mean_weights, row.expert_tokens, strict=True) if count)
    model = load_extended(tiny_model_dir, adapter)
    token_ids = tokens_of(tiny_model_dir, [line for spec in options.corpora for line in lines_of(spec)])
    pooled = observed(model, token_ids)
    alone = observed(model, token_ids, batch_size=1)
    assert all(np.allclose(pooled[key], alone[key], atol=1e-5, equal_nan=True) for key in alone)
    kinds = set()
    for layer, number in ((0, 4), (2, 3)):
        for ids, row in zip(token_ids, pooled[layer, "routing"], strict=True):
            group = group_of(model, layer, ids)
            kinds.add(group)
            choices = min(2, [1, 2, number][group])
            assert row[:number].sum() == choices * len(ids)
            assert row[number : 2 * number].sum() == pytest.approx(len(ids), rel=1e-5)
            assert not row[[1, 2, number][group] : number].any()
    assert kinds == {0, 1, 2}


def lines_of(spec: Any) -> list[str]:
    return list(Path(spec.source).read_text(encoding="utf-8").splitlines())


def group_of(model: Any, layer: int, ids: list[int]) -> int:
    """The classifier's first choice for the sum of a sentence's hidden states."""
    mixture = find_mixtures(model)[layer]
    states: list[torch.Tensor] = []
    hook = mixture.register_forward_pre_hook(lambda _, args: states.append(args[0][0].sum(dim=0)))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    hook.remove()
    return int((mixture.moe_token_classify["default"].weight @ states[0]).argmax())


def test_kept_experts_come_before_new_ones(
    options: SpecialiseOptions, tiny_model_dir: Path, adapters: dict[int, Path], tmp_path: Path, without_pictures: None
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=[5, 2, 4, 2], old_num_experts=EXPERTS, topk=2)
    extended = PeftModel.from_pretrained(base, adapters[2], config=config, is_trainable=True)
    for layer in find_mixtures(extended).values():  # the new ones differ from the base and from each other
        for name in layer.weight_names:
            stack = getattr(layer, f"moe_{name}")
            if "default" in stack:
                randomised(stack, seed=layer.layer_index)
                with torch.no_grad():
                    stack["default"].mul_(1 + torch.arange(len(stack["default"])).view(-1, 1, 1))
    extended.save_pretrained(tmp_path / "adapter")
    found = specialise(replace(options, adapter=str(tmp_path / "adapter"), output=tmp_path / "out", min_sentences=1))
    experts = {layer: [] for layer in range(4)}
    for row in found.of("el"):
        experts[row.layer].append(row.expert)
    assert [len(names) for names in experts.values()] == [5, 2, 4, 2]
    assert experts[0] == [0, 1, 2, 3, 4]
    model = load_extended(tiny_model_dir, tmp_path / "adapter")
    old = find_mixtures(load_extended(tiny_model_dir, adapters[2]))[0]
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    for wrapped in (extended.eval(), model):
        projections = find_mixtures(wrapped)[0].expert_projections()
        with torch.no_grad():
            kept = [projection("up_proj", states) for projection in old.expert_projections()]
            outputs = [projection("up_proj", states) for projection in projections]
        assert len(outputs) == 5
        assert all(torch.equal(one, other) for one, other in zip(kept, outputs, strict=False))
        assert not torch.equal(outputs[3], outputs[4])
    assert len(counts(found)) == 3 * 13
