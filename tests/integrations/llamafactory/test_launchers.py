"""Both stages in two processes, however they are started, against one process at the same global batch size.

Layer 0 has more experts than a process's tokens can choose, so that in every step some get no token there. Stage 1 also
trains the head, and the embedding's rows of some tokens, which stage 2 keeps as they are.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from training_runs import free_port, losses, tools_environment

from allocations import save_allocation
from neuronmoe_plugins.machines import Device
from neuronmoe_plugins.models import new_tokens
from neuronmoe_plugins.recipe_files import RecipeRequest, write_recipe
from neuronmoe_plugins.tuner.saved_modules import is_added

RECIPES = Path(__file__).parents[3] / "recipes"
NUM_EXPERTS, CUTOFF_LEN, TOPK, STEPS = [36, 1, 1, 2], 16, 2, 20
OVERRIDES = [
    *("bf16=false", f"cutoff_len={CUTOFF_LEN}", "mix_strategy=interleave_under", f"max_steps={STEPS}"),
    *("learning_rate=1.0e-3", "logging_steps=1", "disable_tqdm=true"),
]
STAGES = ("stage1", "stage2")
# The second bytes of Greek letters and some more, as if the vocabulary had been extended by them: more rows than ZeRO-3
# keeps whole.
NEW_TOKENS = new_tokens(110, "··αβγδεζηθ··", ["embed_tokens"])
# Processes may run their experts otherwise than one process does.
IMPLEMENTATIONS = {"ddp": ("grouped_mm", "loop"), "zero3": ("sorted", "grouped_mm")}
# DeepSpeed reads the device from the machine; ZeRO-3 does not run where `use_cpu` is set.
ON_CPU = "use_cpu=true"


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "neuronmoe_vocabulary": NEW_TOKENS}))
    return folder


@pytest.fixture(scope="module")
def recipe_in(base: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the recipe of a launcher into a new folder."""

    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        save_allocation(folder / "allocation.yaml", NUM_EXPERTS, [9.0, 1.0, 1.0, 5.0])
        data = (("el_even",), ("en_even",), data_dir)
        write_recipe(RecipeRequest(folder / "allocation.yaml", str(base), folder, *data, device=Device.CUDA))
        with (folder / "stage1.yaml").open("a", encoding="utf-8") as stage1:
            stage1.write("additional_target: lm_head\n")
        return folder

    return write


@pytest.fixture(scope="module")
def single(recipe_in: Callable[[str], Path], forked: Path) -> Path:
    folder = recipe_in("single")
    for stage in STAGES:
        run(["llamafactory-cli", "train", stage, "per_device_train_batch_size=2", ON_CPU], folder, forked)
    return folder


# Forked to the last worker, but for a second stage by torchrun and one by accelerate: the commands that a user starts.
def ddp(folder: Path, forked: Path) -> None:
    for stage, name in zip(STAGES, IMPLEMENTATIONS["ddp"], strict=True):
        command = ["llamafactory-cli", "train", stage, f"experts_implementation={name}", ON_CPU]
        run(command, folder, commands_of(stage, forked), FORCE_TORCHRUN="1", NPROC_PER_NODE="2")


def zero3(folder: Path, forked: Path) -> None:
    configuration = f"deepspeed={RECIPES / 'deepspeed' / 'zero3.json'}"
    for stage, name in zip(STAGES, IMPLEMENTATIONS["zero3"], strict=True):
        command = ["llamafactory-cli", "train", stage, f"experts_implementation={name}", configuration]
        run(command, folder, forked, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")


def fsdp(folder: Path, forked: Path) -> None:
    configuration = yaml.safe_load((RECIPES / "accelerate" / "fsdp.yaml").read_text())
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(configuration | {"use_cpu": True, "mixed_precision": "no"}))
    launch = ["accelerate", "launch", "--config_file", "fsdp.yaml", "--main_process_port", free_port()]
    for stage in STAGES:
        run([*launch, "-m", "llamafactory.launcher", stage, ON_CPU], folder, commands_of(stage, forked))


def commands_of(stage: str, forked: Path) -> Path | None:
    return forked if stage == "stage1" else None


def two_nodes(folder: Path, forked: Path) -> None:
    """Two machines of one process each, with ZeRO-2; whatever the script starts is forked."""
    nodes = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = ["sh", str(RECIPES / "multi-node.sh"), ".", *OVERRIDES, "per_device_train_batch_size=1", ON_CPU]
    second = start(command, folder, forked, **nodes, NODE_RANK="1")
    first = start(command, folder, forked, **nodes, NODE_RANK="0")
    for process in (first, second):
        finish(process)


LAUNCHERS = {"ddp": ddp, "two nodes": two_nodes, "zero3": zero3, "fsdp": fsdp}


@pytest.mark.parametrize("launch", LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_two_processes_train_as_one(
    launch: Callable[[Path, Path], None],
    recipe_in: Callable[[str], Path],
    single: Path,
    forked: Path,
    base: Path,
) -> None:
    assert NUM_EXPERTS[0] - 1 > CUTOFF_LEN * TOPK, "every new expert could get a token"
    folder = recipe_in(launch.__name__)
    launch(folder, forked)
    for stage in STAGES:
        one, two = losses(single / stage), losses(folder / stage)
        assert len(one) == len(two) == STEPS
        alike = same_routing(single / stage, folder / stage)
        for name in ("loss", "lm_loss", "aux_loss" if stage == "stage1" else "lpr_loss"):
            # A step without an old-language token logs no language-prior loss.
            expected, found = ([step.get(name, 0.0) for step in steps] for steps in (one, two))
            assert any(expected)
            # A mean over few tokens: one that is routed otherwise, in an earlier layer or in this step, moves it more.
            for number, routed_alike in enumerate(alike):
                closeness = 1e-5 if routed_alike and name != "lpr_loss" else 1e-4
                assert found[number] == pytest.approx(expected[number], rel=closeness), (stage, name, number)
        # A token whose choice is a near tie may move to another expert, which the gradient feels more than the losses.
        assert [step["grad_norm"] for step in two] == pytest.approx([step["grad_norm"] for step in one], rel=1e-3)
        same_adapter(single / stage, folder / stage)
    keeps_what_is_saved(folder)
    loads_outside(folder / "stage2", base)


def same_routing(folder: Path, other: Path) -> list[bool]:
    """All processes' tokens are counted; whether each step has the same choices.

    A router's near tie may fall the other way in sums of another order, which processors differ in.
    """
    alike = []
    for step, expected in zip(losses(other), losses(folder), strict=True):
        shares = {name for name in expected if "expert" in name}
        assert shares
        assert {name: step[name] for name in shares} == pytest.approx(
            {name: expected[name] for name in shares}, abs=0.02
        )
        alike.append(all(step[name] == pytest.approx(expected[name], abs=1e-6) for name in shares))
    one, two = (json.loads((path / "routing.json").read_text())["layers"] for path in (folder, other))
    for layer in one:
        for tokens in one[layer].keys() & {"all", "old", "new"}:
            assert one[layer][tokens]["tokens"] == two[layer][tokens]["tokens"]
    # At most a step in five: else the runs differ.
    assert alike.count(False) <= STEPS / 5
    return alike


def same_adapter(folder: Path, other: Path) -> None:
    expected, weights = (load_file(path / "adapter_model.safetensors") for path in (folder, other))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == expected[name].dtype
        # Adam makes a whole step of a gradient that is all but zero: elements may differ, a tensor as a whole may not.
        assert (weight - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def keeps_what_is_saved(folder: Path) -> None:
    """Stage 2 trains routers alone."""
    first, second = (load_file(folder / stage / "adapter_model.safetensors") for stage in STAGES)
    saved = [name for name in first if ".moe_" not in name]
    assert [name.rsplit(".", 2)[1] for name in sorted(saved)] == ["lm_head", "token_adapter"]
    assert all(second[name].equal(first[name]) for name in saved)


def loads_outside(adapter: Path, base: Path) -> None:
    """In a plain PEFT program, which refuses a file that lacks a tensor."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    added = (name for name, _ in model.named_parameters() if is_added(name))
    parameters = {re.sub(r"(\.modules_to_save)?\.default", "", name): model.get_parameter(name) for name in added}
    assert parameters.keys() == weights.keys()
    assert all(value.equal(weights[name]) for name, value in parameters.items())


def run(command: list[str], folder: Path, commands: Path | None, **environment: str) -> None:
    """Run a command in which a stage's name stands for its YAML and what all runs have in common."""
    overrides = [*OVERRIDES, "per_device_train_batch_size=1"]
    words = [word for part in command for word in ([f"{part}.yaml", *overrides] if part in STAGES else [part])]
    finish(start(words, folder, commands, **environment))


def start(command: list[str], folder: Path, commands: Path | None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=tools_environment(commands, **environment),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, output[-4000:]
    assert "sorted instead of" not in output
