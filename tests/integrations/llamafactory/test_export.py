"""`llamafactory-cli export` with `finetuning_type: moe`: an adapter, and a recipe that loads it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import train
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.export import model_card
from neuronmoe_plugins.tuner.plans import LayerPlan

PUBLISHED = Path(__file__).parents[2] / "data" / "moe_a"
PROMPT = "abcdefgh"


@pytest.fixture
def export_args(tiny_model_dir: Path, stage1_adapter: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_model_dir),
        "adapter_name_or_path": str(stage1_adapter),
        "finetuning_type": "moe",
        "template": "empty",
        "export_dir": str(tmp_path / "exported"),
    }


def export(args: dict[str, Any], *words: str) -> Path:
    """Run the command in this process, as its console script does."""
    from llamafactory.cli import main

    config = Path(args["export_dir"]).parent / "export.yaml"
    config.write_text(json.dumps(args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["llamafactory-cli", "export", str(config), *words])
        main()
    return Path(args["export_dir"])


def blocks(folder: Path) -> dict[str, str]:
    """The code of the model card by its language."""
    return dict(re.findall(r"```(\w+)\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL))


def greedy(model: Any, token_ids: torch.Tensor) -> list[int]:
    with torch.no_grad():
        return model.generate(token_ids, do_sample=False, max_new_tokens=16)[0].tolist()


def test_the_recipe_loads_the_export(export_args: dict[str, Any], stage1_adapter: Path, forked_python: Path) -> None:
    folder = export(export_args)
    base = AutoModelForCausalLM.from_pretrained(export_args["model_name_or_path"])
    token_ids = torch.tensor([AutoTokenizer.from_pretrained(folder).encode(PROMPT, add_special_tokens=False)])
    of_base = greedy(base, token_ids)
    expected = greedy(PeftModel.from_pretrained(base, stage1_adapter).eval(), token_ids)
    assert expected != of_base
    recipe = blocks(folder)

    run = f"{recipe['python']}\nimport torch\nids = tokenizer.encode({PROMPT!r}, add_special_tokens=False)\n"
    run += "print(model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0].tolist())"
    result = subprocess.run([forked_python / "python", "-c", run], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == expected

    from llamafactory.chat import ChatModel

    chat = ChatModel(yaml.safe_load(recipe["yaml"]) | {"do_sample": False, "max_new_tokens": 16})
    answer = chat.chat([{"role": "user", "content": PROMPT}])[0].response_text
    new_tokens = expected[token_ids.shape[1] :]
    assert answer == chat.engine.tokenizer.decode(new_tokens, skip_special_tokens=True)

    base_and_adapter = f"pretrained={export_args['model_name_or_path']},peft={folder}"
    assert f"lm_eval --model hf --model_args {base_and_adapter},dtype=auto" in recipe["console"]


def test_the_folder_explains_itself(export_args: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("llamafactory.neuronmoe")
    logger.addHandler(caplog.handler)
    folder = export(export_args)
    logger.removeHandler(caplog.handler)
    (message,) = {record.getMessage() for record in caplog.records if record.name == logger.name}
    assert "cannot be merged into its base model: wrote the adapter" in message and str(folder) in message
    card = (folder / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == export_args["model_name_or_path"] and metadata["library_name"] == "peft"
    assert "2 of the 4 layers are mixtures" in card and "3 in layer 0, 2 in layer 3" in card and "13,984" in card
    assert "no merged checkpoint" in card
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == export_args["model_name_or_path"] and config["inference_mode"]
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    assert not (folder / "model.safetensors").exists()


def test_the_card_tells_ranks() -> None:
    arguments = {"model_name_or_path": "base", "export_dir": "out", "model_revision": "main"}
    plans = {0: LayerPlan(3, expert_rank=4), 2: LayerPlan(2, expert_rank=8)}
    run = SimpleNamespace(
        model_args=SimpleNamespace(**arguments),
        data_args=SimpleNamespace(template=None),
        plans=plans,
        num_layers=4,
        config=SimpleNamespace(topk=2),
    )
    ranks = "\nThe new ones, low-rank deltas of rank 4 to 8 on the base model's weights, and the routers together"
    assert ranks in model_card(run, 3040)
    run.plans = {0: LayerPlan(3)}
    assert "\nThe new ones and the routers together have 3,040 parameters.\n" in model_card(run, 3040)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_experts_keep_their_dtype_or_get_the_one_asked_for(
    dtype: str, export_args: dict[str, Any], stage1_adapter: Path
) -> None:
    saved = load_file(stage1_adapter / "adapter_model.safetensors")
    exported = load_file(export(export_args, f"infer_dtype={dtype}") / "adapter_model.safetensors")
    assert saved.keys() == exported.keys()
    for name, tensor in saved.items():
        assert exported[name].equal(tensor if dtype == "auto" else tensor.bfloat16()), name


def test_an_adapter_in_the_published_format_is_exported_in_this_packages(
    export_args: dict[str, Any], tmp_path: Path
) -> None:
    base = shutil.copytree(PUBLISHED / "base", tmp_path / "base")
    AutoTokenizer.from_pretrained(export_args["model_name_or_path"]).save_pretrained(base)
    published = {"model_name_or_path": str(base), "adapter_name_or_path": str(PUBLISHED / "adapter")}
    folder = export(export_args | published)
    assert all(".moe_experts." not in name for name in load_file(folder / "adapter_model.safetensors"))
    token_ids = torch.arange(3, 20).unsqueeze(0)
    logits = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path).eval()(token_ids).logits
        for path in (PUBLISHED / "adapter", folder)
    ]
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"export_hub_model_id": "somebody/something"}, "export_hub_model_id: the export of a mixture is not pushed"),
        ({"export_quantization_bit": 4, "export_quantization_dataset": "c4"}, "export_quantization_bit: a mixture"),
        ({"export_legacy_format": True}, "export_legacy_format: adapters of mixtures are written as safetensors"),
        ({"adapter_name_or_path": None}, "set adapter_name_or_path"),
        ({"adapter_name_or_path": "/nowhere"}, "adapter_name_or_path: /nowhere does not exist"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    wrong: dict[str, Any], message: str, export_args: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export(export_args | wrong)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"export.yaml"}


def test_an_adapter_that_does_not_fit_is_refused(
    export_args: dict[str, Any], stage1_adapter: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(stage1_adapter, tmp_path / "copied")
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"num_experts": [3, 2, 1, 2]}))
    with pytest.raises(UserError, match="does not fit the model"):
        export(export_args | {"adapter_name_or_path": str(copied)})
    assert not (tmp_path / "exported").exists()


def test_nothing_is_overwritten(export_args: dict[str, Any], stage1_adapter: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(stage1_adapter, tmp_path / "copied")
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=re.escape(f"export_dir: {copied} exists already: choose another folder")):
        export(export_args | {"adapter_name_or_path": str(copied), "export_dir": str(copied)})
    assert before == {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}


def test_lora_is_merged_as_without_the_package(
    moe_args: dict[str, Any], export_args: dict[str, Any], tmp_path: Path
) -> None:
    lora = {"finetuning_type": "lora", "ada_moe_num_experts_list": None}
    train(moe_args, tmp_path / "lora", max_steps=1, **lora)
    folder = export(export_args | {"finetuning_type": "lora", "adapter_name_or_path": str(tmp_path / "lora")})
    assert (folder / "model.safetensors").exists() and not (folder / "README.md").exists()
