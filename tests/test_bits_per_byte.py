"""lm-eval's bits per byte against a plain sum over windows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.evaluation import write_tasks
from rolling import document_nats

# One token per byte: short, ending in a newline, exactly two windows of 64, longer than that, and texts that
# templates or literals could swallow.
DOCUMENTS = ["Καλημέρα κόσμε!\n", "a" * 128, "Το γρήγορο γεράκι. " * 12, "[1, 2]", "{{ text }}", "7", "a\u2028b"]
MAX_LENGTH = 64


def write_documents(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents), "utf-8")
    return path


def lm_eval_bits_per_byte(model_dir: Path, tasks_dir: Path, task: str, **model_args: Any) -> float:
    import lm_eval
    from lm_eval.tasks import TaskManager

    output = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model_dir), "dtype": "float32", "max_length": MAX_LENGTH, **model_args},
        device="cpu",
        batch_size=2,
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks_dir), include_defaults=False),
    )
    assert output is not None
    return float(output["results"][task]["bits_per_byte,none"])


@pytest.fixture
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` prepares out of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("scores_bos", [False, True])
@pytest.mark.usefixtures("no_shared_cache")
def test_lm_eval_measures_nats_per_byte(tiny_model_dir: Path, tmp_path: Path, scores_bos: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_documents(tmp_path / "el.jsonl", DOCUMENTS)
    assert write_tasks(tmp_path / "tasks", {"el": path}) == ["bits_per_byte_el"]
    # The tiny tokenizer adds BOS by itself; lm-eval then also scores that BOS.
    model_args = {} if scores_bos else {"add_bos_token": False}
    measured = lm_eval_bits_per_byte(tiny_model_dir, tmp_path / "tasks", "bits_per_byte_el", **model_args)

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    encoded = [tokenizer(text, add_special_tokens=scores_bos).input_ids for text in DOCUMENTS]
    assert max(map(len, encoded)) > 3 * MAX_LENGTH
    nats = sum(document_nats(model, tokens, tokenizer.bos_token_id, MAX_LENGTH) for tokens in encoded)
    num_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    assert measured == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_tasks_keep_the_order_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        write_documents(tmp_path / f"{name}.jsonl", ["x"])
    monkeypatch.chdir(tmp_path)
    names = write_tasks(Path("tasks"), {"b": Path("b.jsonl"), "a": Path("a.jsonl")})
    assert names == ["bits_per_byte_b", "bits_per_byte_a"]
    task = yaml.safe_load((tmp_path / "tasks" / "bits_per_byte_b.yaml").read_text(encoding="utf-8"))
    assert task["dataset_kwargs"] == {"data_files": {"test": str(tmp_path.resolve() / "b.jsonl")}}
    assert [metric["metric"] for metric in task["metric_list"]] == ["bits_per_byte"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ('{"text": "a"}\n{"txt": "b"}\n', r":2: .*'text'"),
        ('{"text": null}\n', r":1: .*'text'"),
        ("not json\n", r":1: .*'text'"),
        (None, "cannot be read"),
    ],
)
def test_bad_file_is_refused_and_nothing_written(tmp_path: Path, content: str | None, message: str) -> None:
    good = write_documents(tmp_path / "good.jsonl", ["x"])
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        write_tasks(tmp_path / "tasks", {"good": good, "bad": bad})
    assert not (tmp_path / "tasks").exists()


def test_bad_key_is_refused(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "x.jsonl", ["x"])
    with pytest.raises(UserError, match="'a/b'"):
        write_tasks(tmp_path / "tasks", {"a/b": path})
