"""Accuracy and prompts, with a model whose answers are known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

GOLDEN_PROMPT_EL = """\
Ερωτήσεις πολλαπλής επιλογής με τις απαντήσεις τους. Θέμα: Αστρονομία.

astronomy d0?
A. d0-w
B. d0-x
C. d0-y
D. d0-z
Απάντηση: D

astronomy d1?
A. d1-w
B. d1-x
C. d1-y
D. d1-z
Απάντηση: A

astronomy t1?
A. t1-w
B. t1-x
C. t1-y
D. t1-z
Απάντηση:"""

GOLDEN_PROMPT_TR = """\
Cevaplarıyla birlikte çoktan seçmeli sorular. Konu: Astronomi.

astronomy t1?
A. t1-w
B. t1-x
C. t1-y
D. t1-z
Cevap:"""


class AlwaysFirst(LM):
    """Prefers the answer A to every question, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(-1.0 if request.args[1] == " A" else -2.0, False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


def share_of_first(subjects: list[list[dict[str, Any]]]) -> float:
    """Share of rows, over all subjects together, whose right answer is A."""
    answers = [row["answer"] for rows in subjects for row in rows]
    return answers.count(0) / len(answers)


@pytest.mark.parametrize(
    ("code", "shots", "golden_prompt"), [("el", 2, GOLDEN_PROMPT_EL), ("tr", 0, GOLDEN_PROMPT_TR)], ids=["el", "tr"]
)
def test_accuracy_is_the_share_of_right_answers(
    request: pytest.FixtureRequest, generate: ModuleType, code: str, shots: int, golden_prompt: str
) -> None:
    local = request.getfixturevalue({"el": "greek", "tr": "turkish"}[code])
    model = AlwaysFirst()
    manager = TaskManager(include_path=str(local.include_path), include_defaults=False)
    output = lm_eval.simple_evaluate(
        model=model, tasks=[f"mmlu_{code}"], num_fewshot=shots, task_manager=manager, bootstrap_iters=0
    )
    assert output is not None
    results = output["results"]
    for name, rows in local.test.items():
        assert results[f"mmlu_{name}_{code}"]["acc,none"] == pytest.approx(share_of_first([rows]), abs=1e-12)

    for category in generate.CATEGORIES:
        subjects = [subject.name for subject in generate.read_subjects() if subject.category == category]
        pooled = share_of_first([local.test[subject] for subject in subjects])
        assert output["groups"][f"mmlu_{category}_{code}"]["acc,none"] == pytest.approx(pooled, abs=1e-12)
    pooled = share_of_first(list(local.test.values()))
    mean_over_subjects = sum(share_of_first([rows]) for rows in local.test.values()) / 57
    assert output["groups"][f"mmlu_{code}"]["acc,none"] == pytest.approx(pooled, abs=1e-12)
    assert abs(pooled - mean_over_subjects) > 0.01, "the data no longer tell the two averages apart"

    asked = [choice for prompt, choice in model.asked if prompt == golden_prompt]
    assert asked == [" A", " B", " C", " D"]
