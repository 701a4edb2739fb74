"""Accuracy, chance and prompts of the questions, with a model whose likelihoods are known."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from probes_data import ACC, ACC_NORM, CASES, CHANCE, QUESTION_TASKS, FixedLikelihoods, probe_tasks, write_probes

GOLDEN_PROMPTS = {
    "exams_hu": "Kérdés: exams_hu 0 {{answer}}?\nVálasz:",
    "exams_tr": "Soru: exams_tr 0 {{answer}}?\nCevap:",
    "exams_es": "Pregunta: exams_es 0 {{answer}}?\nRespuesta:",
    "capitals_el": "Χώρες του κόσμου και οι πρωτεύουσές τους.\n\nΧώρα: capitals_el 0 {{answer}}?\nΠρωτεύουσα:",
    "capitals_tr": "Dünya ülkeleri ve başkentleri.\n\nÜlke: capitals_tr 0 {{answer}}?\nBaşkent:",
    "capitals_hu": "A világ országai és fővárosaik.\n\nOrszág: capitals_hu 0 {{answer}}?\nFőváros:",
    "capitals_es": "Países del mundo y sus capitales.\n\nPaís: capitals_es 0 {{answer}}?\nCapital:",
}
GOLDEN_ONE_SHOT = """\
Χώρες του κόσμου και οι πρωτεύουσές τους.

Χώρα: capitals_el 1 {{answer}}?
Πρωτεύουσα: eeeeeeee

Χώρα: capitals_el 0 {{answer}}?
Πρωτεύουσα:"""


@pytest.fixture
def probes_dir(tmp_path: Path) -> Path:
    return write_probes(tmp_path / "data")


def evaluate(model: FixedLikelihoods, probes_dir: Path, tasks: list[str], **options: Any) -> dict[str, Any]:
    manager = probe_tasks(probes_dir=str(probes_dir))
    output = lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, **options)
    assert output is not None
    return dict(output["results"])


def test_scores_are_exact_for_every_task(probes_dir: Path) -> None:
    results = evaluate(FixedLikelihoods(), probes_dir, list(QUESTION_TASKS))
    assert set(results) == set(QUESTION_TASKS)
    for task, scores in results.items():
        assert scores["acc,none"] == pytest.approx(ACC, abs=1e-12), task
        assert scores["acc_norm,none"] == pytest.approx(ACC_NORM, abs=1e-12), task
        assert scores["chance,none"] == pytest.approx(CHANCE, abs=1e-12), task
        assert scores["acc_stderr,none"] == pytest.approx(math.sqrt(ACC * (1 - ACC) / 4), abs=1e-12), task
        assert scores["chance_stderr,none"] == "N/A", task


def test_prompts_are_in_the_language(probes_dir: Path) -> None:
    model = FixedLikelihoods()
    evaluate(model, probes_dir, list(QUESTION_TASKS), bootstrap_iters=0)
    choices = [f" {text}" for text, _ in CASES[0][1]]
    assert GOLDEN_PROMPTS.keys() == set(QUESTION_TASKS)
    for task, prompt in GOLDEN_PROMPTS.items():
        assert [choice for asked, choice in model.asked if asked == prompt] == choices, task


def test_examples_are_other_questions_with_their_answers(probes_dir: Path) -> None:
    lines = (probes_dir / "capitals_el.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (probes_dir / "capitals_el.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    model = FixedLikelihoods()
    evaluate(model, probes_dir, ["capitals_el"], num_fewshot=1, bootstrap_iters=0)
    assert model.asked[0] == (GOLDEN_ONE_SHOT, " ααα")


def test_accuracies_are_those_of_lm_eval(probes_dir: Path) -> None:
    task = probe_tasks(probes_dir=str(probes_dir)).load(["exams_hu"])["tasks"]["exams_hu"]
    score, rng = task.config.process_results, random.Random(0)
    task.config.process_results = None
    seen = set()
    for doc in list(task.test_docs()) * 20:
        results = [(-rng.uniform(1, 9), False) for _ in doc["choices"]]
        scores = score(doc, results)
        assert scores.pop("chance") == 1 / len(doc["choices"])
        assert scores == task.process_results(doc, results)
        seen.add((scores["acc"], scores["acc_norm"]))
    assert len(seen) == 4
