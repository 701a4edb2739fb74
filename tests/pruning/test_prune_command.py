"""`neuronmoe prune`: what it writes keeps its promise and is an adapter like any other; bad input is one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from data_folders import save_data
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.loading import load_model
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.pruning import Pruning
from neuronmoe_plugins.pruning.leaving_out import Measured
from pruning.adapters import KINDS
from pruning.test_leaving_out import loss_by_transformers
from specialisation.extending import save_adapter
from tuner.tiny import moe_config

FILES = ["adapter_config.json", "adapter_model.safetensors", "pruning.json"]


def prune(adapter: Path | str, model: Path | str, output: Path, *more: object) -> Any:
    command = ["prune", str(adapter), f"--model={model}", f"--output={output}", "--device=cpu", *map(str, more)]
    return CliRunner().invoke(app, command)


@pytest.fixture(scope="module", params=["copies", "attention", "groups"])
def pruned(
    request: Any, adapters: dict[str, Path], tiny_model_dir: Path, data: Path, tmp_path_factory: Any
) -> tuple[str, Path, str]:
    """Kind of an adapter, what was made of it, and what was printed."""
    output = tmp_path_factory.mktemp("pruned") / "deep" / "out"
    done = prune(adapters[request.param], tiny_model_dir, output, "--data", data, "--below=0.004", "--batch-size=9")
    assert done.exit_code == 0, (done.output, done.exception)
    return request.param, output, done.stdout


def test_keeps_its_promise(
    pruned: tuple[str, Path, str], tiny_model_dir: Path, sentences: TokenizedSentences, loaded: dict[str, Any]
) -> None:
    kind, output, printed = pruned
    assert sorted(path.name for path in output.iterdir()) == FILES
    record = Pruning.load(output)
    assert 0 < len(record.dropped) < len(record.experts)
    after = loss_by_transformers(load_model(str(tiny_model_dir), "float32", "cpu", str(output)), sentences)
    before = loss_by_transformers(loaded[kind], sentences)
    kinds = {"en": False, "el": True, "es": False}
    assert {row.language: row.is_new for row in record.languages} == kinds
    for row in record.languages:
        place = sentences.languages.index(row.language)
        assert (row.before, row.after) == pytest.approx((before[place], after[place]), rel=1e-5)
        assert row.rise <= 0.004
        assert f"{row.before:.4f}" in printed
    assert any(row.after != row.before for row in record.languages)


def test_says_what_is_left(pruned: tuple[str, Path, str], adapters: dict[str, Path]) -> None:
    kind, output, printed = pruned
    record, config = Pruning.load(output), json.loads((output / FILES[0]).read_text())
    given = KINDS[kind]["num_experts"]
    left = [count - sum(row.layer == layer for row in record.dropped) for layer, count in enumerate(given)]
    assert config["num_experts"] == left
    sizes = [sum(tensor.numel() for tensor in load_file(path / FILES[1]).values()) for path in (adapters[kind], output)]
    assert (record.parameters_before, record.parameters_after) == tuple(sizes)
    assert f"parameters of the adapter: {sizes[0]:,} -> {sizes[1]:,}" in printed
    assert printed.rstrip().endswith(f"Wrote {output}")


def test_can_be_extended(pruned: tuple[str, Path, str], tiny_model_dir: Path) -> None:
    """By one more expert per layer, also of those that are dense again; the new ones are copies of the base."""
    _, output, _ = pruned
    pruned_config = json.loads((output / FILES[0]).read_text())
    old, more = (
        pruned_config["num_experts"],
        {name: pruned_config[name] for name in ("expert_rank", "targets", "group_nums")},
    )
    config = moe_config(num_experts=[count + 1 for count in old], old_num_experts=old, **more)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = peft.PeftModel.from_pretrained(base, output, config=config, is_trainable=True)
    labels = torch.tensor([[1, 5, 9, 30]])
    model(input_ids=labels, labels=labels).loss.backward()
    file = load_file(output / FILES[1])
    for layer, count in enumerate(old):
        name = f"base_model.model.model.layers.{layer}.mlp.moe_"
        mixture = model.base_model.model.model.layers[layer].mlp
        if count == 1:
            assert not any(key.startswith(name) for key in file)
            continue
        assert torch.equal(mixture.moe_old_router["default"].weight, file[f"{name}router.weight"])


BAD = {
    "nothing": (
        "",
        r"^nothing to measure the loss on: pass --data DIR, or --corpus LANGUAGE=SOURCE for each language$",
    ),
    "both": ("--data D --corpus en=a.txt", r"^--data D and --corpus both say what to analyse; leave one out$"),
    "no target": (
        "--corpus en=en.txt --corpus el=el.txt",
        "^pass --target: which of the languages en, el the adapter learned$",
    ),
    "unknown target": (
        "--corpus en=en.txt --corpus el=el.txt --target tr",
        "^--target tr has no texts; there are those of en, el$",
    ),
    "no old": (
        "--data learned",
        "^there are texts of el, but none of a language that it has to keep, whose loss",
    ),
    "no new": ("--data kept", "^there are texts of en, but none of a language that the adapter learned, whose loss"),
    "no unseen": ("--data trained", r"manifest\.json has no data set of role held-out or analysis; add one for each"),
    "two": ("--data twice", r"manifest\.json: a and b are both of role held-out and language en; keep one in its"),
    "below": ("--data D --below=-0.1", r"^--below is -0\.1; it must be a share of the loss, 0 or more, such as 0\.01$"),
    "exists": ("--data D --output full", "^--output full exists already: choose another folder, or remove it$"),
    "lora": ("--data D --adapter lora", "^ADAPTER has no mixture of experts; name one of the method moe, not lora$"),
    "gone": ("--data D --adapter ./nix", r"^ADAPTER \./nix does not exist, and is no name on the Hugging Face Hub"),
    "other base": (
        "--data D --model other",
        r"^ADAPTER \S+ cannot be loaded: the adapter 'default' is one of \S+, but other has other weights",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    case: str,
    adapters: dict[str, Path],
    tiny_model_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D").symlink_to(data)
    for name in ("full", "lora"):
        (tmp_path / name).mkdir()
    (tmp_path / "lora/adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "full/notes.txt").write_text("mine")
    train, test = ("el", "target", ["α"]), ("el", "held-out", ["β"])
    save_data(tmp_path / "learned", {"train": train, "test": test})
    save_data(tmp_path / "trained", {"train": train})
    save_data(tmp_path / "kept", {"train": train, "test": ("en", "held-out", ["a"])})
    save_data(tmp_path / "twice", {"a": ("en", "held-out", ["a"]), "b": ("en", "held-out", ["b"])})
    if "other" in more:
        save_other_base(tiny_model_dir, tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))
    words = shlex.split(more)
    given = {"--adapter": str(adapters["top-1"]), "--model": str(tiny_model_dir), "--output": "new"}
    for flag in given:
        if flag in words:
            given[flag] = words.pop(words.index(flag) + 1)
            words.remove(flag)
    done = prune(given["--adapter"], given["--model"], Path(given["--output"]), *words)
    assert isinstance(done.exception, UserError), done.output
    with pytest.raises(UserError, match=message):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert sorted(tmp_path.rglob("*")) == before


def save_other_base(model: Path, folder: Path) -> None:
    """A model of the same shape with other weights."""
    base = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        base.model.layers[0].mlp.gate_proj.weight.add_(0.1)
    base.save_pretrained(folder)
    for path in model.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())


def test_what_is_written_is_measured(
    adapters: dict[str, Path], tiny_model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that should not have been dropped come back, the last ones first."""
    by_layer = [(2, 2), (0, 1), (0, 2), (3, 1), (2, 1)]
    monkeypatch.setattr("neuronmoe_plugins.pruning.choosing.choose_experts", lambda *_: by_layer)
    done = prune(adapters["copies"], tiny_model_dir, tmp_path / "out", "--data", data, "--below=0.01")
    assert done.exit_code == 0, (done.output, done.exception)
    record = Pruning.load(tmp_path / "out")
    assert {(row.layer, row.expert) for row in record.dropped} == set(by_layer[: len(record.dropped)])
    assert 0 < len(record.dropped) < len(by_layer)
    assert max(row.rise for row in record.languages) <= 0.01


def test_nothing_is_written_where_nothing_can_go(
    adapters: dict[str, Path], tiny_model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = save_adapter(tiny_model_dir, tmp_path / "one", [1, 1, 2, 1], expert_rank=1)
    done = prune(one, tiny_model_dir, tmp_path / "out", "--data", data, "--below=9")
    assert str(done.exception) == (
        f"{one} has one expert beside the base model's MLPs, and without it would be no adapter; nothing is written"
    )
    monkeypatch.setattr(Measured, "rise", lambda *_: 0.123)
    done = prune(adapters["copies"], tiny_model_dir, tmp_path / "out", "--data", data)
    assert str(done.exception) == (
        f"no expert of {adapters['copies']} can go with --below 0.01: without the least needed, expert 1 of layer 0, "
        "the loss on a language rises by 0.12 of itself; nothing is written"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
