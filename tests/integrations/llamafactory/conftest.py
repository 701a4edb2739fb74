"""Data sets in two scripts, and arguments of tiny LLaMA-Factory runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from training_runs import stage1_arguments, train

from forking.commands import forked_commands

if find_spec("llamafactory") is None:  # the extra `train` is not installed
    collect_ignore_glob = ["test_*.py"]

# The hosts import most of these only when they train.
IMPORTED = [
    "llamafactory.train.tuner",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers.models.llama.modeling_llama",
    "accelerate.commands.launch",
    "torch.distributed.run",
]
COMMANDS = ["llamafactory-cli", "torchrun", "accelerate"]
LATIN, GREEK = "abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψω"


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of LLaMA-Factory's commands that are forked from a process which has imported what they need."""
    with forked_commands(tmp_path_factory.mktemp("forked"), IMPORTED, COMMANDS) as commands:
        yield commands


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA-Factory data folder.

    `en_even` and `el_even`: texts of 31 bytes, so that with their EOS every block of 64 tokens holds two.
    `en_odd` and `el_odd`: texts of many lengths. `*_coded` are those with language codes. Latin letters are old.
    Texts in Latin letters are in language group 0, those in Greek ones in group 1, and in `el_third` in group 2.
    """
    folder = tmp_path_factory.mktemp("data")
    random_ = random.Random(0)

    def texts(alphabet: str, lengths: list[int]) -> list[str]:
        return ["".join(random_.choice(alphabet[:8]) for _ in range(length)) for length in lengths]

    odd = [random_.randint(1, 40) for _ in range(150)]
    files = {
        "en_even": texts(LATIN, [31] * 200),
        "el_even": [text + "!" for text in texts(GREEK, [15] * 200)],
        "en_odd": texts(LATIN, odd),
        "el_odd": texts(GREEK, odd),
    }
    for name, lines in files.items():
        rows = (json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    tags = {"en_even": ("old", "g0"), "el_even": ("new", "g1"), "en_odd": ("old", 0), "el_odd": ("new", 1)}
    info: dict[str, Any] = {name: _entry(name, language=tag, group_tag=group) for name, (tag, group) in tags.items()}
    info |= {"el_third": _entry("el_odd", language="new", group_tag="g2")}
    info |= {f"group_{tag}": _entry("en_odd", group_tag=tag) for tag in ("second", "1", -1, 0.5, True)}
    info |= {"en_coded": _entry("en_odd", language="en"), "el_coded": _entry("el_odd", language="el")}
    info |= {"untagged": _entry("en_odd"), "strange": _entry("en_odd", language=7)}
    info |= {"en_chat": _chat(folder, "en_chat", LATIN, "old", "g0")}
    info |= {"el_chat": _chat(folder, "el_chat", GREEK, "new", "g1")}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def moe_args(tiny_model_dir: Path, data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a short stage 1 run in float32."""
    return stage1_arguments(tiny_model_dir, data_dir, tmp_path / "output")


@pytest.fixture(scope="session")
def stage1_adapter(tiny_model_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 whose experts have moved far from the base MLP, so that it generates another text."""
    folder = tmp_path_factory.mktemp("adapter") / "stage1"
    train(stage1_arguments(tiny_model_dir, data_dir, folder), folder, learning_rate=0.05, max_steps=8)
    return folder


def _entry(file_name: str, **more: Any) -> dict[str, Any]:
    return {"file_name": f"{file_name}.jsonl", "columns": {"prompt": "text"}, **more}


def _chat(folder: Path, name: str, alphabet: str, language: str, group: str) -> dict[str, Any]:
    """Instructions of several lengths; the second has no answer, and LLaMA-Factory drops it."""
    rows = [{"instruction": alphabet[: 3 + i], "output": alphabet[:5] if i != 1 else None} for i in range(6)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"prompt": "instruction", "response": "output"}
    return {"file_name": f"{name}.jsonl", "columns": columns, "language": language, "group_tag": group}
