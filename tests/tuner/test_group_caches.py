"""Language groups are decided on the prompt, and go with its sequences through caches and every way to generate."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tuner.language_groups import fix_groups, grouped_model, mixture_layers, prompts
from tuner.tiny import tiny_model


@pytest.mark.parametrize("cache", ["new", "given", "static"])
def test_decoding_keeps_the_groups_of_the_prefill(cache: str) -> None:
    model, input_ids = grouped_model(), prompts()
    past = {"new": None, "given": DynamicCache(), "static": StaticCache(model.config, max_cache_len=12)}[cache]
    with torch.no_grad():
        outputs = model(input_ids=input_ids, past_key_values=past, use_cache=True)
        groups = dict(outputs.past_key_values.moe_groups)
        step = model(input_ids=outputs.logits[:, -1:].argmax(-1), past_key_values=outputs.past_key_values)
    assert all(step.past_key_values.moe_groups[key] is decided for key, decided in groups.items())
    # The same tokens at once, in the groups of the prompt alone.
    tokens = torch.cat([input_ids, outputs.logits[:, -1:].argmax(-1)], dim=1)
    for layer in mixture_layers(model):
        fix_groups(layer, lambda _states, decided=groups[layer.layer_index, "default"]: decided)
    with torch.no_grad():
        whole = model(input_ids=tokens).logits[:, -1]
    torch.testing.assert_close(step.logits[:, -1], whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_generate(options: dict[str, object]) -> None:
    model, input_ids = grouped_model(), prompts(4)
    torch.manual_seed(0)
    whole = model.generate(input_ids=input_ids, max_new_tokens=5, pad_token_id=0, **{"do_sample": False} | options)
    assert whole.shape == (4 * options.get("num_return_sequences", 1), 11)
    if not options:
        for row in range(4):
            one = model.generate(input_ids=input_ids[row : row + 1], max_new_tokens=5, pad_token_id=0, do_sample=False)
            assert torch.equal(one[0], whole[row])


def test_a_copied_cache_keeps_its_groups_and_an_emptied_one_does_not() -> None:
    model, input_ids = grouped_model(), prompts()
    with torch.no_grad():
        past = model(input_ids=input_ids, use_cache=True).past_key_values
        copied = copy.deepcopy(past)
        expected = model(input_ids=input_ids[:, :1], past_key_values=past).logits
        assert torch.equal(model(input_ids=input_ids[:, :1], past_key_values=copied).logits, expected)
        static = StaticCache(model.config, max_cache_len=12)
        model(input_ids=input_ids, past_key_values=static)
        static.reset()
        again = model(input_ids=input_ids.flip(0), past_key_values=static).logits
        torch.testing.assert_close(again, model(input_ids=input_ids.flip(0)).logits, atol=1e-4, rtol=0)


def test_a_cache_filled_without_the_adapter_is_refused() -> None:
    model, input_ids = grouped_model(), prompts()
    with torch.no_grad():
        past = tiny_model()(input_ids=input_ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="KV cache was filled without this adapter"):
            model(input_ids=input_ids[:, :1], past_key_values=past)


def generate(model: torch.nn.Module, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
    """Greedily, after prompts of which one in two has padding on the left."""
    mask = torch.ones_like(input_ids)
    mask[::2, :2] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(input_ids=input_ids.masked_fill(mask == 0, 0), attention_mask=mask, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_way_to_generate_decides_on_the_prompt(options: dict[str, object]) -> None:
    model = grouped_model()
    # Repeated, so that the prompt has something to look up; which is done for one sequence at a time.
    input_ids = prompts().repeat(1, 2)
    batches = input_ids[:5].split(1) if "prompt_lookup_num_tokens" in options else [input_ids]
    usual = {name: value for name, value in options.items() if name == "num_beams"}
    for batch in batches:
        assert torch.equal(generate(model, batch, **options), generate(model, batch, **usual))


def test_a_prompt_shown_in_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decides language groups on the whole prompt.*leave prefill_chunk_size out"):
        generate(grouped_model(), prompts(2), prefill_chunk_size=4)


@pytest.mark.parametrize("rows", [[3, 0, 5], [1, 1, 1, 4]])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("way", ["batch_select_indices", "reorder_cache", "batch_repeat_interleave"])
def test_groups_follow_their_sequences(way: str, copied: bool, rows: list[int]) -> None:
    model, input_ids = grouped_model(), prompts()
    with torch.no_grad():
        past = model(input_ids=input_ids, use_cache=True).past_key_values
        steps = model(input_ids=input_ids[:, :1], past_key_values=copy.deepcopy(past)).logits
        past = copy.deepcopy(past) if copied else past
        if way == "batch_repeat_interleave":
            past.batch_repeat_interleave(2)
            rows = torch.arange(len(input_ids)).repeat_interleave(2)[torch.tensor(rows)].tolist()
            past.batch_select_indices(torch.tensor(rows))
            rows = torch.arange(len(input_ids)).repeat_interleave(2)[torch.tensor(rows)].tolist()
        else:
            getattr(past, way)(torch.tensor(rows))
        again = model(input_ids=input_ids[rows, :1], past_key_values=past).logits
    torch.testing.assert_close(again, steps[rows], atol=1e-4, rtol=0)


def test_a_cache_cut_within_its_prompt_is_refused() -> None:
    model, input_ids = grouped_model(), prompts(4)
    with torch.no_grad():
        past = model(input_ids=input_ids, use_cache=True).past_key_values
        step = model(input_ids=input_ids[:, :1], past_key_values=past).logits
        past.crop(-1)
        torch.testing.assert_close(model(input_ids=input_ids[:, :1], past_key_values=past).logits, step)
        past.crop(-3)
        with pytest.raises(ValueError, match="was cut within its prompt"):
            model(input_ids=input_ids[:, :1], past_key_values=past)


def test_rows_selected_behind_the_cache_are_refused() -> None:
    model, input_ids = grouped_model(), prompts(4)
    with torch.no_grad():
        past = model(input_ids=input_ids, use_cache=True).past_key_values
        DynamicCache.batch_select_indices(past, torch.arange(3))
        with pytest.raises(ValueError, match="decided for 4 sequences, but 3 go on"):
            model(input_ids=input_ids[:3, :1], past_key_values=past)
