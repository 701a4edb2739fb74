"""Hand-made data in the form of `fetch_probes.py`, and models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

TASKS_DIR = Path(__file__).parents[2] / "lm_eval_tasks"
QUESTION_TASKS = tuple(f"exams_{code}" for code in ("hu", "tr", "es"))
QUESTION_TASKS += tuple(f"capitals_{code}" for code in ("el", "tr", "hu", "es"))
TEXT_LANGUAGES = ("el", "tr", "hu", "es", "en", "zh")
TEXT_TASKS = tuple(f"bits_per_byte_{code}" for code in TEXT_LANGUAGES)

# Right answer, and the log-likelihood of every choice, whose text is as many times its letter as its length.
# Whether the most likely one is right, and the most likely one per character: yes no, no yes, yes yes, yes no, no no.
CASES: list[tuple[int, list[tuple[str, float]]]] = [
    (0, [("ααα", -3.0), ("bbbbbbbbbb", -5.0), ("cccc", -8.0)]),
    (1, [("dd", -2.0), ("eeeeeeee", -3.0), ("ff", -7.0), ("g", -9.0)]),
    (4, [("h", -6.0), ("i", -7.0), ("j", -8.0), ("k", -9.0), ("l", -1.0)]),
    (2, [("mmmmmmmmmm", -5.0), ("n", -9.0), ("ooo", -4.0)]),
    (3, [("p", -1.0), ("q", -2.0), ("r", -3.0), ("s", -4.0)]),
]
ACC, ACC_NORM = 3 / 5, 2 / 5
CHANCE = (1 / 3 + 1 / 4 + 1 / 5 + 1 / 3 + 1 / 4) / 5


def make_questions(task: str) -> list[dict[str, Any]]:
    return [
        {"question": f"{task} {number} {{{{answer}}}}?", "choices": [text for text, _ in case], "answer": answer}
        for number, (answer, case) in enumerate(CASES)
    ]


def write_probes(folder: Path) -> Path:
    """Write the file of every probe; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in QUESTION_TASKS:
        write_json_lines(folder / f"{task}.jsonl", make_questions(task))
    for code in TEXT_LANGUAGES:
        lines = [f"Ember {code} {number} αβγ." * (1 + number % 3) for number in range(60)]
        (folder / f"udhr_{code}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def probe_tasks(**metadata: Any) -> TaskManager:
    """The tasks on disk, with what a user gives by `--metadata`."""
    return TaskManager(include_path=str(TASKS_DIR / "probes"), include_defaults=False, metadata=metadata)


class FixedLikelihoods(LM):
    """Gives each choice the log-likelihood of `CASES` and each text -1 nat per byte; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihoods = {f" {text}": value for _, case in CASES for text, value in case}
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(self.likelihoods[request.args[1]], False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-float(len(request.args[0].encode())) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError
