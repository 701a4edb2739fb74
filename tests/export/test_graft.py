"""An adapter on a model that was tuned from its base: experts by the models' difference, routers as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from export.making import TOKENS, MakeAdapter
from neuronmoe_plugins import cli
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.graft import graft
from neuronmoe_plugins.export.request import GraftRequest
from tuner.tiny import GOLDEN, moe_config, tiny_model


def request(folder: Path, **changes: Any) -> GraftRequest:
    given = {"adapter": str(folder / "adapter"), "target": str(folder / "chat"), "output": folder / "out"}
    return GraftRequest(**given | changes)


def save_chat(folder: Path, family: str = "llama", **options: Any) -> torch.nn.Module:
    model = tiny_model(family, seed=5, **options)
    model.save_pretrained(folder / "chat")
    return model


@pytest.mark.parametrize("options", [{}, {"expert_rank": 3}, {"adapter_dtype": "bfloat16"}])
def test_one_that_was_never_trained_becomes_the_tuned_model(tmp_path: Path, options: dict[str, Any]) -> None:
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    get_peft_model(base, moe_config(num_experts=[3, 1, 2], **options)).save_pretrained(tmp_path / "adapter")
    chat = save_chat(tmp_path)
    graft(request(tmp_path))
    made = load_file(tmp_path / "out/adapter_model.safetensors")
    for name, tensor in made.items():
        if "expert_rank" not in options and "router" not in name:
            path, projection = name.removeprefix("base_model.model.").split(".moe_")
            expected = chat.get_submodule(path).get_submodule(projection).weight.to(tensor.dtype)
            assert all(each.equal(expected) for each in tensor)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "chat")
    grafted = PeftModel.from_pretrained(fresh, tmp_path / "out").eval()
    with torch.no_grad():
        found, expected = (model(input_ids=TOKENS).logits for model in (grafted, chat))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 if "adapter_dtype" in options else 1e-5)


def test_what_was_learned_is_added_and_routers_stay(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    model = make_adapter(num_experts=[3, 1, 4], old_num_experts=[2, 1, 3])
    chat = save_chat(tmp_path)
    result = CliRunner().invoke(
        cli.app,
        ["graft", "--adapter", f"{tmp_path}/adapter", "--to", f"{tmp_path}/chat", "--output", f"{tmp_path}/out"],
    )
    assert result.output.endswith(f"Wrote {tmp_path}/out: its 5 experts got the difference of the two models' MLPs\n")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "out"))
    base = model.unload()
    for name, tensor in before.items():
        path, projection = name.removeprefix("base_model.model.").split(".moe_")
        if "router" in name:
            assert after[name].equal(tensor)
            continue
        old, new = (each.get_submodule(path).get_submodule(projection).weight for each in (base, chat))
        torch.testing.assert_close(after[name].double() - tensor, (new.double() - old).expand_as(tensor))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "chat")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "chat"), tmp_path / "out")


def test_a_published_adapter_keeps_its_format(tmp_path: Path) -> None:
    adapter, base = GOLDEN / "adapter", str(GOLDEN / "base")
    graft(request(tmp_path, adapter=str(adapter), base=base, target=base))
    made, given = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", adapter))
    assert made.keys() == given.keys()
    assert all(torch.allclose(made[name], given[name], atol=1e-6) for name in given)


def test_models_that_do_not_fit_are_refused(make_adapter: MakeAdapter, tiny_model_dir: Path, tmp_path: Path) -> None:
    make_adapter()
    save_chat(tmp_path, "mistral")
    with pytest.raises(UserError, match=r"chat is a mistral model, but --from .*base is a llama one$"):
        graft(request(tmp_path))
    save_chat(tmp_path, vocab_size=64)
    with pytest.raises(UserError, match=r"embed_tokens\.weight is \(64, 16\) instead of \(61, 16\)$"):
        graft(request(tmp_path))
    save_chat(tmp_path, num_hidden_layers=4)
    with pytest.raises(UserError, match=r"only one of them has model\.layers\.3\.mlp\.down_proj\.weight$"):
        graft(request(tmp_path))
    save_chat(tmp_path)
    with pytest.raises(UserError, match=r"^--adapter .* is one of another model, but .*chat has other weights"):
        graft(request(tmp_path, base=str(tmp_path / "chat")))
    for file in tiny_model_dir.glob("tok*"):
        for name in ("base", "chat"):
            shutil.copy(file, tmp_path / name)
    file = tmp_path / "chat/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {"a": content["model"]["vocab"]["b"], "b": content["model"]["vocab"]["a"]}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has other tokens than --from .*: 'a' is \d+ instead of \d+; take a model"):
        graft(request(tmp_path))
    assert not (tmp_path / "out").exists()
