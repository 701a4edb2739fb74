"""Small data sets with the configs, splits and fields of the hub's, in folders of their names.

`datasets` takes a folder for a data set of the hub: in their parent folder lm-eval's tasks run as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Row = dict[str, Any]
LETTERS = "ABCDE"
# The choices' texts get longer in this order, so that the likeliest by text is not the likeliest by character.
CHOICES = ("x", "yy longer", "zzz far longer still", "w")
ARC_ROWS, OKAPI_ROWS, TRAIN_ROWS, HELLASWAG_ROWS, BELEBELE_ROWS = 6, 5, 30, 5, 7
OKAPI_SPLITS = {"train": TRAIN_ROWS, "validation": 2, "test": OKAPI_ROWS}


def write_all(folder: Path, subjects: Iterable[str]) -> None:
    """Write every data set of the groups `neuronmoe_*`."""
    for language, name in (("el", "ilsp/arc_greek"), ("tr", "malhajar/arc-tr"), ("en", "allenai/ai2_arc")):
        splits = {"train": arc_rows(language, "train", TRAIN_ROWS), "test": arc_rows(language, "test", ARC_ROWS)}
        write(folder / name, {"ARC-Challenge": splits | {"validation": arc_rows(language, "validation", 2)}})
    write(folder / "alexandrainst/m_arc", {"hu": {s: okapi_rows(s, n) for s, n in OKAPI_SPLITS.items()}})
    greek_and_turkish = (("ilsp/hellaswag_greek", str), ("malhajar/hellaswag_tr-v0.2", int))
    # lm-eval 0.4.9 has the English one by its old name.
    for name, label in (*greek_and_turkish, ("Rowan/hellaswag", str), ("hellaswag", str)):
        splits = {split: hellaswag_rows(split, HELLASWAG_ROWS, label) for split in ("train", "validation")}
        write(folder / name, {"default": splits})
    write(folder / "alexandrainst/m_hellaswag", {"hu": {"val": hellaswag_rows("val", HELLASWAG_ROWS, str)}})
    mmlu = {
        subject: {"dev": mmlu_rows(subject, "dev", 5), "test": mmlu_rows(subject, "test", 2)} for subject in subjects
    }
    for name in ("ilsp/mmlu_greek", "malhajar/mmlu-tr", "cais/mmlu"):
        write(folder / name, mmlu)
    okapi_mmlu = {split: okapi_rows(split, rows) for split, rows in {"train": 8, "test": OKAPI_ROWS}.items()}
    write(folder / "alexandrainst/m_mmlu", {"hu": okapi_mmlu})
    languages = ("ell_Grek", "tur_Latn", "hun_Latn", "eng_Latn")
    write(folder / "facebook/belebele", {language: {"test": belebele_rows(language)} for language in languages})


def write(folder: Path, configs: dict[str, dict[str, list[Row]]]) -> None:
    """Write Parquet files and the README header by which `load_dataset` finds them."""
    listed = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-0.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        listed.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n", encoding="utf-8")


def arc_rows(language: str, split: str, count: int) -> list[Row]:
    """Answers go round; every third question has digits for letters, and three choices."""
    rows = []
    for i in range(count):
        size = 3 if i % 3 == 2 else 4
        labels = "1234" if i % 3 == 2 else LETTERS
        choices = {"label": list(labels[:size]), "text": list(CHOICES[:size])}
        answer = labels[i % size]
        rows.append(
            {"id": f"{split}-{i}", "question": f"{language} {split} {i}?", "choices": choices, "answerKey": answer}
        )
    return rows


def okapi_rows(split: str, count: int) -> list[Row]:
    """Questions of `m_arc` and `m_mmlu`, whose choices are fields of their own."""
    options = {f"option_{letter.lower()}": choice for letter, choice in zip(LETTERS, CHOICES, strict=False)}
    return [
        {"id": f"{split}/{i}", "instruction": f"{split} {i}?", **options, "option_e": None, "answer": LETTERS[i % 4]}
        for i in range(count)
    ]


def hellaswag_rows(split: str, count: int, label: type) -> list[Row]:
    """Contexts with the marks of their web pages; the label is text in some data sets and a number in others."""
    return [
        {
            "ind": i,
            "activity_label": f"Topic {split} {i}",
            "ctx_a": "[header] How [title] It begins.",
            "ctx_b": "istanbul and Rome",
            "ctx": "",
            "endings": list(CHOICES),
            "source_id": "",
            "split_type": "indomain",
            "label": label(i % 4),
        }
        for i in range(count)
    ]


def mmlu_rows(subject: str, split: str, count: int) -> list[Row]:
    first = len(subject)
    return [
        {"question": f"{subject} {split} {i}?", "subject": subject, "choices": list(CHOICES), "answer": (first + i) % 4}
        for i in range(count)
    ]


def belebele_rows(language: str) -> list[Row]:
    answers = {f"mc_answer{i + 1}": choice for i, choice in enumerate(CHOICES)}
    return [
        {
            "flores_passage": f"{language} passage {i}.",
            "question": f"{language} question {i}?",
            **answers,
            "correct_answer_num": str(1 + i % 4),
            "dialect": language,
        }
        for i in range(BELEBELE_ROWS)
    ]
