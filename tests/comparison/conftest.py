"""Real runs of lm-eval on small local tasks: two models, and one of them evaluated in other ways."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from runs import run_lm_eval

# Subjects of the group: their sizes differ, so that its value is not the mean of theirs.
SUBJECTS = {"mmlu_algebra_el": 25, "mmlu_anatomy_el": 4, "mmlu_history_el": 11}
CHOICES = {"arc_el": 45, "arc_tr": 9, "zoo_one": 6, "zoo_two": 17, **SUBJECTS}
GROUPS: list[dict[str, Any]] = [
    {"group": "mmlu_science_el", "task": ["mmlu_algebra_el", "mmlu_anatomy_el"]},
    {"group": "mmlu_el", "task": ["mmlu_science_el", "mmlu_history_el"]},
    {"group": "zoo", "task": ["zoo_one", "zoo_two"], "weight_by_size": False},
    {"group": "everything_el", "task": ["arc_el", "mmlu_el"], "metric": None},
]
TASKS = ("everything_el", "arc_tr", "zoo", "bits_per_byte_el", "genus")


@pytest.fixture(scope="session")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for `--include_path`: multiple choice, groups, a rolling task, and one that smooths its mean."""
    folder = tmp_path_factory.mktemp("tasks")
    for place, (name, size) in enumerate(CHOICES.items()):
        write_task(folder, choice_task(name, ["acc", "acc_norm"]), questions(place, size))
    write_task(folder, choice_task("genus", ["acc"]), questions(99, 12))
    (folder / "aggregation.py").write_text("def rate(items):\n    return (1 + sum(items)) / (2 + len(items))\n")
    yaml_file = folder / "genus.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("aggregation: mean", "aggregation: !function aggregation.rate"))
    texts = [{"text": question["question"] * (1 + i)} for i, question in enumerate(questions(98, 8))]
    write_task(folder, rolling_task("bits_per_byte_el"), texts)
    for group in GROUPS:
        write_group(folder, **group)
    return folder


@pytest.fixture(scope="session")
def adapter_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `moe` adapter of 7 experts in 4 layers, far from its base."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = peft.get_peft_config({"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": [3, 1, 1, 2]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape)
    folder = tmp_path_factory.mktemp("training") / "stage2"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runs(
    tiny_model_dir: Path, adapter_dir: Path, tasks_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Name -> what `--output_path` made: the base model and its mixture, and the base without samples, with fewer items
    and with other prompts."""
    base, mixture = f"pretrained={tiny_model_dir}", f"pretrained={tiny_model_dir},peft={adapter_dir}"
    folder = tmp_path_factory.mktemp("runs")
    given: dict[str, tuple[str, ...]] = {
        "base": (base, ",".join(TASKS), "--log_samples"),
        "mixture": (mixture, ",".join(TASKS), "--log_samples"),
        "bare": (base, "arc_el,zoo,bits_per_byte_el"),
        "limited": (mixture, "arc_el", "--log_samples", "--limit", "7"),
        "shots": (mixture, "arc_el", "--log_samples", "--num_fewshot", "1"),
        "reworded": (mixture, "arc_el", "--log_samples", "--system_instruction", "Answer!"),
    }
    cache = tmp_path_factory.mktemp("cache")
    for name, (model_args, tasks, *options) in given.items():
        run_lm_eval(tasks_dir, model_args, tasks, folder / name, cache, *options)
    return {name: folder / name for name in given}


def questions(seed: int, count: int) -> list[dict[str, Any]]:
    """Questions of random Greek letters with four answers of different lengths."""
    draw = random.Random(seed)

    def word(letters: int) -> str:
        return "".join(draw.choices("αβγδεζηθικλμνξοπρστυφχψω", k=letters))

    return [
        {
            "question": f"{word(5)} {word(3)}?",
            "choices": [word(draw.randint(1, 9)) for _ in range(4)],
            "answer": draw.randint(0, 1),
        }
        for _ in range(count)
    ]


def choice_task(name: str, metrics: list[str]) -> dict[str, Any]:
    return {
        "task": name,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "fewshot_split": "test",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
    }


def rolling_task(name: str) -> dict[str, Any]:
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    return {
        "task": name,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [metric],
    }


def write_task(folder: Path, task: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    data = folder / f"{task['task']}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | source | {"metadata": {"version": 1.0}}))


def write_group(
    folder: Path, group: str, task: list[str], metric: str | None = "acc", weight_by_size: bool = True
) -> None:
    content: dict[str, Any] = {"group": group, "task": task, "metadata": {"version": 1.0}}
    if metric:
        content["aggregate_metric_list"] = [{"metric": metric, "weight_by_size": weight_by_size}]
    (folder / f"{group}.yaml").write_text(yaml.safe_dump(content))
