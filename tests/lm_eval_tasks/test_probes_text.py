"""Bits per byte on text files, against a sum over windows by transformers alone; and the files that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from probes_data import QUESTION_TASKS, TASKS_DIR, probe_tasks, write_json_lines, write_probes

from neuronmoe_plugins.errors import UserError
from rolling import document_nats

# One token per byte. Joined are the first two; the third, of 2,600 bytes, is longer than a document and than the
# context; the fourth would fit beside it no more; and the last ends exactly at 2,000 bytes.
PARAGRAPHS = ["Καλημέρα κόσμε.", "a\u2028b {{ text }}", "Το γρήγορο γεράκι. " * 75 + "τέλος", "[1, 2]", "x" * 1993]
TEXT = f"\ufeff\n  {PARAGRAPHS[0]}\r\n\n{PARAGRAPHS[1]}\n{PARAGRAPHS[2]}\n\t\n{PARAGRAPHS[3]} \n{PARAGRAPHS[4]}\n7\n"
DOCUMENTS = [
    f"{PARAGRAPHS[0]}\n{PARAGRAPHS[1]}",
    PARAGRAPHS[2],
    f"{PARAGRAPHS[3]}\n{PARAGRAPHS[4]}",
    "7",
]
MAX_LENGTH = 512


def load_documents(**metadata: Any) -> list[str]:
    task = probe_tasks(**metadata).load(["bits_per_byte_el"])["tasks"]["bits_per_byte_el"]
    return [task.doc_to_target(doc) for doc in task.test_docs()]


def bits_per_byte(model: Any, tokenizer: Any, documents: list[str]) -> float:
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in documents]
    nats = sum(document_nats(model, tokens, tokenizer.bos_token_id, MAX_LENGTH) for tokens in encoded)
    return nats / math.log(2) / sum(len(text.encode()) for text in documents)


def test_documents_are_paragraphs_joined_to_2000_bytes(tmp_path: Path) -> None:
    (tmp_path / "el.txt").write_bytes(TEXT.encode())
    assert len(DOCUMENTS[1].encode()) > 2000 == len(DOCUMENTS[2].encode())
    assert load_documents(text_file=str(tmp_path / "{language}.txt")) == DOCUMENTS


def test_lines_of_json_are_documents(tmp_path: Path) -> None:
    texts = ["α\n\nβ ", "  ", PARAGRAPHS[2], "[1, 2]"]
    write_json_lines(tmp_path / "x.jsonl", [{"text": text, "id": 1} for text in texts])
    assert load_documents(text_file=str(tmp_path / "x.jsonl")) == [texts[0], texts[2], "[1, 2]"]


def test_default_is_the_declaration(tmp_path: Path) -> None:
    write_probes(tmp_path)
    lines = (tmp_path / "udhr_el.txt").read_text(encoding="utf-8").splitlines()
    assert "\n".join(load_documents(probes_dir=str(tmp_path))).split("\n") == lines


def test_lm_eval_measures_bits_per_byte(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    output = lm_eval.simple_evaluate(
        model="hf",
        # The tiny tokenizer adds BOS by itself; lm-eval would then also score that BOS.
        model_args={"pretrained": str(tiny_model_dir), "dtype": "float32", "add_bos_token": False},
        device="cpu",
        batch_size=2,
        tasks=["bits_per_byte_el"],
        task_manager=probe_tasks(text_file=str(tmp_path / "text.txt")),
    )
    assert output is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    expected = bits_per_byte(model, tokenizer, DOCUMENTS)
    mean = sum(bits_per_byte(model, tokenizer, [document]) for document in DOCUMENTS) / len(DOCUMENTS)
    assert output["results"]["bits_per_byte_el"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - mean) > 1e-3, "the data no longer tell the two averages apart"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "cannot be read: No such file or directory"),
        ("empty.txt", b"\xef\xbb\xbf \n\t\n", " has no text"),
        ("latin.txt", "señal".encode("latin-1"), ": not UTF-8 text; convert the file to UTF-8"),
        ("empty.jsonl", b"\n", " has no text"),
        ("other.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n', ", document 2: field 'text' is null, not text"),
        ("list.jsonl", b"[1]\n", ", document 1: not a JSON object with a field 'text'"),
        ("broken.jsonl", b'\n{"text"', ":2: broken JSON"),
    ],
)
def test_bad_text_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_documents(text_file=str(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["text_file", "probes_dir"])
def test_path_that_is_no_string_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key} in --metadata is list, not text$"):
        load_documents(**{key: ["a.txt"]})


def load_task(name: str) -> Callable[[Path], object]:
    return lambda folder: probe_tasks(probes_dir=str(folder)).load([name])


@pytest.mark.parametrize("task", [*QUESTION_TASKS, "bits_per_byte_zh"])
def test_missing_data_are_named_with_the_command(tmp_path: Path, task: str) -> None:
    file = "udhr_zh.txt" if task == "bits_per_byte_zh" else f"{task}.jsonl"
    with pytest.raises(UserError) as caught:
        load_task(task)(tmp_path)
    command = f"python {TASKS_DIR / 'fetch_probes.py'} --output {tmp_path}"
    assert str(caught.value) == f"{tmp_path / file} is missing: run `{command}`"


@pytest.mark.parametrize("content", ["", json.dumps({"question": "?", "choices": ["a"]}), "7"])
def test_other_files_are_no_questions(tmp_path: Path, content: str) -> None:
    (tmp_path / "exams_hu.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"exams_hu\.jsonl is no file of questions: remove it and run `python /\S+/fetch_probes.py`"
    ):
        load_task("exams_hu")(tmp_path)
