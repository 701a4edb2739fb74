"""A small data set of the hub's schema and the same task YAMLs pointed at it."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from stand_ins import write_all

from forking.commands import forked_commands

IMPORTED = [
    "lm_eval.__main__",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "transformers.models.llama.modeling_llama",
    "torch.distributed.run",
    "indexed_tasks",
]
TASKS_DIR = Path(__file__).parents[2] / "lm_eval_tasks"
Row = dict[str, Any]


@dataclass(frozen=True)
class LocalTasks:
    """Where one language's test copy lies: `include_path` for lm-eval, and the rows of each subject's splits."""

    include_path: Path
    test: dict[str, list[Row]]
    dev: dict[str, list[Row]]


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of lm-eval's command, forked from a process that has imported it and indexed its tasks."""
    with forked_commands(tmp_path_factory.mktemp("forked"), IMPORTED, ["lm_eval", "torchrun"]) as commands:
        yield commands


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """The generator script as a module."""
    spec = importlib.util.spec_from_file_location("mmlu_generate", TASKS_DIR / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what `datasets` prepares out of the user's cache, and reads the card of a data set's 57 subjects once."""
    import datasets
    from datasets import load

    # Its name in datasets 3 is the second.
    names = ("LocalDatasetModuleFactory", "LocalDatasetModuleFactoryWithoutScript")
    factory = next(getattr(load, name) for name in names if hasattr(load, name))
    folder, read = tmp_path_factory.mktemp("datasets-cache"), factory.get_module
    known: dict[tuple[str, ...], Any] = {}

    def read_once(self: Any) -> Any:
        key = (str(Path(self.path).resolve()), str(self.data_dir), str(self.data_files))
        if key not in known:
            known[key] = read(self)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setattr(factory, "get_module", read_once)
        yield folder


@pytest.fixture(scope="session")
def subjects(generate: ModuleType) -> list[str]:
    """The names of MMLU's subjects."""
    return [subject.name for subject in generate.read_subjects()]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, subjects: list[str], datasets_cache: Path) -> Path:
    """A folder in which lm-eval finds a small stand-in for every data set of the groups `neuronmoe_*`."""
    folder = tmp_path_factory.mktemp("hub")
    write_all(folder, subjects)
    return folder


@pytest.fixture(scope="session")
def adapter_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `moe` adapter on the tiny model whose experts are far from the base's."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = peft.get_peft_config({"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": [3, 1, 1, 2]})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def greek(tmp_path_factory: pytest.TempPathFactory, generate: ModuleType, datasets_cache: Path) -> LocalTasks:
    """`mmlu_el` on Parquet files, the layout of `ilsp/mmlu_greek`."""
    return make_local_tasks(tmp_path_factory.mktemp("mmlu-el"), generate, "el", write_parquet, "parquet")


@pytest.fixture(scope="session")
def turkish(tmp_path_factory: pytest.TempPathFactory, generate: ModuleType, datasets_cache: Path) -> LocalTasks:
    """`mmlu_tr` on JSON lines, the layout of `malhajar/mmlu-tr`."""
    return make_local_tasks(tmp_path_factory.mktemp("mmlu-tr"), generate, "tr", write_jsonl, "jsonl")


def make_local_tasks(folder: Path, generate: ModuleType, code: str, write_rows: Any, suffix: str) -> LocalTasks:
    names = [subject.name for subject in generate.read_subjects()]
    # Sizes and shares of right answers differ, so that a plain mean over subjects is not the pooled accuracy.
    test = {name: make_rows(name, "t", 1 + i % 4, i % 4) for i, name in enumerate(names)}
    dev = {name: make_rows(name, "d", 5, i + 1) for i, name in enumerate(names)}
    for name in names:
        (folder / "data" / name).mkdir(parents=True)
        write_rows(folder / "data" / name / f"test-0.{suffix}", test[name])
        write_rows(folder / "data" / name / f"dev-0.{suffix}", dev[name])
    write_data_card(folder / "data", names)
    generate.write(folder / "tasks", generate.render(code, dataset_path=str(folder / "data")))
    return LocalTasks(folder / "tasks", test, dev)


def make_rows(subject: str, split: str, count: int, first_answer: int) -> list[Row]:
    """Questions with blanks around them, choices that name their place, and answers that go round."""
    return [
        {
            "question": f" {subject} {split}{i}? \n",
            "subject": subject,
            "choices": [f"{split}{i}-{place}" for place in "wxyz"],
            "answer": (first_answer + i) % 4,
        }
        for i in range(count)
    ]


def write_parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_data_card(folder: Path, names: list[str]) -> None:
    """The README header by which `load_dataset(folder, subject)` finds its files."""
    splits = ("test", "dev")
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in splits]}
        for name in names
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
