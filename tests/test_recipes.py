"""Recipes: the paper's numbers, paths that work from anywhere, and bad input."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from allocations import save_allocation
from neuronmoe_plugins import machines
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError

PAPER = json.loads((Path(__file__).parent / "data" / "paper_tables.json").read_text(encoding="utf-8"))
GREEK: list[int] = PAPER["table2_llama32_3b_greek"]["neuronmoe"]
TAGS = {"el_train": "new", "en_replay": "old", "es_replay": "old", "el": "el", "tr": "tr", "en": "en", "es": "es"}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An allocation of 28 layers and a data folder."""
    save_allocation(tmp_path / "allocation.yaml", GREEK)
    info: dict[str, Any] = {name: {"file_name": f"{name}.jsonl", "language": tag} for name, tag in TAGS.items()}
    info["untagged"] = {"file_name": "untagged.jsonl"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path


def recipe(
    workspace: Path, target: str = "el_train", replay: str = "en_replay", *more: str
) -> tuple[dict[str, Any], ...]:
    """Run the command from the data folder with relative paths; the YAMLs as LLaMA-Factory would read them."""
    command = [
        "recipe",
        "--allocation",
        "allocation.yaml",
        "--model",
        "org/model",
        "--dataset-dir",
        ".",
        "--output",
        "run",
    ]
    command += ["--target-dataset", target, "--replay-dataset", replay, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        result = CliRunner().invoke(app, command)
    if result.exception:
        raise result.exception
    return tuple(yaml.safe_load((workspace / "run" / f"{stage}.yaml").read_text()) for stage in ("stage1", "stage2"))


def test_new_tokens_of_the_base_are_trained_in_stage_1(workspace: Path) -> None:
    (workspace / "org" / "model").mkdir(parents=True)
    config = {"num_hidden_layers": 28, "neuronmoe_vocabulary": {"first": 7, "tokens": 2, "modules": ["embed_tokens"]}}
    (workspace / "org" / "model" / "config.json").write_text(json.dumps(config))
    stage1, stage2 = recipe(workspace)
    assert stage1["train_new_tokens"] is True and "train_new_tokens" not in stage2


def test_stages_have_the_papers_hyper_parameters(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_cpu_has_bf16", lambda: True)
    stage1, stage2 = recipe(workspace, "el_train", "en_replay,es_replay")
    paper = PAPER["table7_hyperparameters"]
    shared = {
        "adam_beta1": paper["adam_beta1"],
        "adam_beta2": paper["adam_beta2"],
        "adam_epsilon": paper["adam_epsilon"],
        "weight_decay": paper["weight_decay"],
        "lr_scheduler_type": paper["lr_scheduler"],
        "warmup_steps": paper["warmup_steps"],
        "per_device_train_batch_size": paper["per_device_batch_size"],
        "gradient_accumulation_steps": paper["gradient_accumulation_steps"],
        "max_grad_norm": paper["max_grad_norm"],
        "seed": paper["seed"],
        "topk": paper["topk"],
        "bf16": True,
        "stage": "pt",
        "finetuning_type": "moe",
    }
    assert stage1.items() >= shared.items()
    assert stage2.items() >= shared.items()
    assert stage1["learning_rate"] == paper["learning_rate"]
    assert stage1["max_steps"] == paper["max_steps"]
    assert stage1["cutoff_len"] == paper["stage1_cutoff_len"]
    assert stage1["aux_loss_coef"] == paper["aux_loss_coef"]
    assert stage1["ada_moe_num_experts_list"] == GREEK
    for name in ("learning_rate", "lpr_loss_coef", "cutoff_len"):
        assert stage2[name] == paper["stage2"][name]
    assert stage2["num_train_epochs"] == paper["stage2"]["epochs"]
    assert stage2["train_only_router"] is stage2["generate_lang_mask"] is True
    assert (stage1["dataset"], stage2["dataset"]) == ("el_train", "en_replay,es_replay,el_train")


def test_the_rank_of_the_experts_is_the_allocations(workspace: Path) -> None:
    assert not {"moe_expert_rank", "router_learning_rate"} & recipe(workspace)[0].keys()
    allocation = yaml.safe_load((workspace / "allocation.yaml").read_text())
    (workspace / "allocation.yaml").write_text(yaml.safe_dump(allocation | {"expert_rank": 64}))
    stage1, stage2 = recipe(workspace, "el_train", "en_replay", "--force")
    assert (stage1["moe_expert_rank"], stage1["router_learning_rate"]) == (64, 1e-4)
    assert not {"moe_expert_rank", "router_learning_rate"} & stage2.keys(), "the adapter has it"
    assert "moe_targets" not in stage1
    (workspace / "allocation.yaml").write_text(
        yaml.safe_dump(allocation | {"expert_rank": 64, "expert_targets": "both"})
    )
    stage1, stage2 = recipe(workspace, "el_train", "en_replay", "--force")
    assert (stage1["moe_expert_rank"], stage1["moe_targets"]) == (64, "both")
    assert "moe_targets" not in stage2, "the adapter has it"


def test_paths_are_absolute_and_stage2_starts_from_stage1(workspace: Path) -> None:
    stage1, stage2 = recipe(workspace)
    assert stage1["dataset_dir"] == stage2["dataset_dir"] == str(workspace)
    assert stage1["output_dir"] == stage2["adapter_name_or_path"] == str(workspace / "run" / "stage1")
    assert stage2["output_dir"] == str(workspace / "run" / "stage2")
    assert stage1["model_name_or_path"] == "org/model"


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("stage1", {"finetuning_type", "ada_moe_num_experts_list", "topk", "aux_loss_coef"}),
        (
            "stage2",
            {"adapter_name_or_path", "finetuning_type", "topk", "train_only_router", "lpr_loss_coef"}
            | {"generate_lang_mask", "original_languages"},
        ),
    ],
)
def test_every_key_of_moe_is_explained(workspace: Path, stage: str, keys: set[str]) -> None:
    recipe(workspace, "el", "en,es")
    lines = (workspace / "run" / f"{stage}.yaml").read_text().splitlines()
    explained = {line.split(":")[0] for above, line in pairwise(lines) if above.startswith("# ")}
    assert explained >= keys


def test_codes_become_original_languages(workspace: Path) -> None:
    assert recipe(workspace, "el", "en,es")[1]["original_languages"] == "en,es"
    assert "original_languages" not in recipe(workspace, "el_train", "en_replay", "--force")[1]


def test_deepspeed_file(workspace: Path) -> None:
    stage1, stage2 = recipe(workspace, "el_train", "en_replay", "--deepspeed", "zero2")
    assert stage1["deepspeed"] == stage2["deepspeed"] == str(workspace / "run" / "zero2.json")
    assert json.loads((workspace / "run" / "zero2.json").read_text())["zero_optimization"]["stage"] == 2


def test_other_files_are_kept_unless_forced(workspace: Path) -> None:
    recipe(workspace)
    recipe(workspace)
    edited = workspace / "run" / "stage2.yaml"
    edited.write_text("mine: é\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"stage2\.yaml exists with another content; add --force"):
        recipe(workspace)
    assert edited.read_text(encoding="latin-1") == "mine: é\n"
    assert recipe(workspace, "el_train", "en_replay", "--force")[1]["stage"] == "pt"


@pytest.mark.parametrize(
    ("target", "replay", "message"),
    [
        ("missing", "en_replay", r"dataset_info\.json has no data set missing; it has: .*el_train"),
        ("untagged", "en_replay", 'untagged has no "language"'),
        ("el_train", "untagged", 'untagged has no "language"'),
        ("en_replay", "en_replay", 'en_replay is a target data set, but its "language" is "old"'),
        ("en", "es", 'en is a target data set, but its "language" is "en"'),
        ("es", "es", 'es is a target data set, but its "language" is "es"'),
        ("el_train", "el_train", 'el_train is a replay data set, but its "language" is "new"'),
        ("el_train", "en_replay,el", 'el is a replay data set, but its "language" is "el"'),
        ("tr", "en_replay", "tr is tagged with a language code, but the replay data sets with"),
    ],
)
def test_data_sets_that_do_not_fit_their_role(workspace: Path, target: str, replay: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(workspace, target, replay)
    assert not (workspace / "run").exists()


def test_allocation_of_another_model(workspace: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"num_experts has 28 entries, but .* has 4 layers"):
        recipe(workspace, "el_train", "en_replay", "--model", str(tiny_model_dir))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"dataset_info\.json does not exist; --dataset-dir must be LLaMA-Factory's data folder, and"),
        ("{", r"dataset_info\.json is not JSON \(.*\); it must map names of data sets to their entries$"),
        ("[]", r"dataset_info\.json is not a JSON object; it must map names"),
    ],
)
def test_data_folder_that_is_none(workspace: Path, text: str | None, message: str) -> None:
    info = workspace / "dataset_info.json"
    info.unlink() if text is None else info.write_text(text)
    with pytest.raises(UserError, match=message):
        recipe(workspace)
    assert not (workspace / "run").exists()


@pytest.mark.parametrize(
    ("here", "options", "bf16", "use_cpu", "note"),
    [
        (None, [], True, True, "Written for a CPU (use_cpu); "),
        (None, ["--deepspeed", "zero2"], True, True, "Written for a CPU (use_cpu); "),
        (None, ["--deepspeed", "zero3"], False, None, "Written for a CPU, for ZeRO-3 in float32 and without use_cpu; "),
        (True, [], True, None, "Written for a GPU with bfloat16; "),
        (False, [], False, None, "Written for this machine's accelerator, in float32: it has no bfloat16."),
        ("not asked", ["--device", "cuda", "--deepspeed", "zero3-offload"], True, None, "Written for a GPU with "),
        ("not asked", ["--device", "cpu"], True, True, "Written for a CPU (use_cpu); "),
        (None, [], False, True, "Written for a CPU (use_cpu), in float32: this one has no bfloat16; "),
    ],
)
def test_what_the_machine_allows(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    here: bool | None,
    options: list[str],
    bf16: bool,
    use_cpu: bool | None,
    note: str,
) -> None:
    monkeypatch.setattr(machines, "_accelerator_has_bf16", not_asked if here == "not asked" else lambda: here)
    monkeypatch.setattr(machines, "_cpu_has_bf16", lambda: bf16)
    for number, stage in enumerate(recipe(workspace, "el_train", "en_replay", *options), start=1):
        assert (stage["bf16"], stage.get("use_cpu")) == (bf16, use_cpu)
        assert f"\n# {note}" in (workspace / "run" / f"stage{number}.yaml").read_text()


def not_asked() -> bool:
    raise AssertionError("torch is asked for the machine's accelerator")


def test_offloading_without_a_gpu(workspace: Path) -> None:
    message = (
        "--deepspeed zero2-offload moves what a GPU holds into the CPU's memory, and this recipe is for a CPU; pass "
        "--deepspeed zero2, or --device cuda to write for a GPU"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        recipe(workspace, "el_train", "en_replay", "--deepspeed", "zero2-offload", "--device", "cpu")
    assert not (workspace / "run").exists()


def test_bad_input_does_not_wait_for_torch(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_accelerator_has_bf16", not_asked)
    with pytest.raises(UserError, match="no data set missing"):
        recipe(workspace, "missing")


@pytest.mark.parametrize("native", [True, False])
def test_torch_says_what_the_accelerator_can_do(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert machines._accelerator_has_bf16() is native
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: native)
    assert machines._accelerator_has_bf16() is (False if native else None)  # transformers knows none that is here


@pytest.mark.parametrize(
    ("accelerator", "cpu", "dtype"), [(None, True, "bfloat16"), (None, False, "float32"), (True, False, "bfloat16")]
)
def test_a_cpu_without_bfloat16_gets_float32(
    monkeypatch: pytest.MonkeyPatch, accelerator: bool | None, cpu: bool, dtype: str
) -> None:
    import torch

    monkeypatch.setattr(machines, "_accelerator_has_bf16", lambda: accelerator)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu)
    assert machines.fast_dtype() == dtype
