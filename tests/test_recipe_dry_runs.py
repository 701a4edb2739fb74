"""Every ready-made recipe, read by LLaMA-Factory's own parser and set up as it would, on a tiny model of its kind."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.skipif(find_spec("llamafactory") is None, reason="the extra `train` is not installed")

RECIPES = Path(__file__).parents[1] / "recipes"
HIDDEN, INTERMEDIATE = 8, 12
LANGUAGES = ("greek", "turkish", "hungarian")


def runs(folder: Path) -> list[str]:
    """The YAMLs of a folder in the order in which they run."""
    if (folder / "stage1.yaml").exists():
        return ["stage1.yaml", "stage2.yaml"]
    return [f"{language}-stage{stage}.yaml" for language in LANGUAGES for stage in (1, 2)]


FOLDERS = sorted(path.parent.name for path in RECIPES.glob("*/dataset_info.json"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of both kinds with all their layers, of hidden size 8 and MLPs of 12."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "vocab_size": 32}
    sizes |= {"num_attention_heads": 2}
    configs = {
        "meta-llama/Llama-3.2-3B": LlamaConfig(num_hidden_layers=28, num_key_value_heads=1, **sizes),
        "Qwen/Qwen1.5-1.8B": Qwen2Config(num_hidden_layers=24, num_key_value_heads=2, **sizes),
    }
    folders = {}
    for name, config in configs.items():
        folders[name] = tmp_path_factory.mktemp("base") / "model"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def parse(path: Path, workspace: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What `llamafactory-cli train PATH model_name_or_path=…` reads, started in a folder with `data`."""
    from llamafactory.hparams import get_train_args

    monkeypatch.chdir(workspace)
    monkeypatch.setattr("sys.argv", ["train", str(path), f"model_name_or_path={model}", "use_cpu=true"])
    return get_train_args()


def set_up(arguments: tuple[Any, ...]) -> Any:
    """The model that the run would train."""
    from llamafactory.model import loader
    from transformers import AutoConfig, AutoModelForCausalLM

    model_args, _, _, finetuning_args, _ = arguments
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    base = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, config=config)
    return loader.init_adapter(config, base, model_args, finetuning_args, True)


def experts_per_layer(model: Any) -> list[int]:
    from neuronmoe_plugins.tuner import MoeLayer

    mlps = [layer.mlp for layer in model.get_base_model().model.layers]
    return [mlp.plans["default"].num_experts if isinstance(mlp, MoeLayer) else 1 for mlp in mlps]


def trained_elements(experts: list[int], older: list[int], only_router: bool) -> int:
    """All router rows in stage 2; in stage 1 the new experts and their rows, in a new mixture also the base's row."""
    if only_router:
        return sum(count * HIDDEN for count in experts if count > 1)
    new = [count - old for count, old in zip(experts, older, strict=True)]
    first_rows = sum(old == 1 and count > 1 for count, old in zip(experts, older, strict=True))
    return sum(new) * 3 * HIDDEN * INTERMEDIATE + (sum(new) + first_rows) * HIDDEN


def backward(model: Any) -> None:
    """One step's gradients, on tokens of which half are in an old language."""
    import torch

    ids = torch.arange(24).reshape(2, 12)
    mask = torch.tensor([[1], [0]]).expand(2, 12)
    loss = model.train()(input_ids=ids, labels=ids, old_language_mask=mask).loss
    assert torch.isfinite(loss)
    loss.backward()


@pytest.mark.parametrize("folder", FOLDERS)
def test_dry_run(folder: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    info = shutil.copy(RECIPES / folder / "dataset_info.json", tmp_path / "data")
    for entry in json.loads(Path(info).read_text()).values():
        (tmp_path / "data" / entry["file_name"]).touch()
    older: list[int] = []
    for name in runs(RECIPES / folder):
        recipe = yaml.safe_load((RECIPES / folder / name).read_text(encoding="utf-8"))
        arguments = parse(RECIPES / folder / name, tmp_path, models[recipe["model_name_or_path"]], monkeypatch)
        training_args, finetuning_args = arguments[2:4]
        model = set_up(arguments)
        experts = recipe.get("ada_moe_num_experts_list", older)
        assert experts_per_layer(model) == experts
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        only_router = finetuning_args.train_only_router
        assert only_router is ("stage2" in name) is all("router" in key for key in trained)
        elements = sum(value.numel() for value in trained.values())
        assert elements == trained_elements(experts, older or [1] * len(experts), only_router)
        backward(model)
        assert [key for key, value in trained.items() if value.grad is None] == []
        model.save_pretrained(training_args.output_dir)
        older = experts
