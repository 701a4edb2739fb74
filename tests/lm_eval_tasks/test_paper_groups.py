"""The groups `neuronmoe_*`: the paper's benchmarks, its numbers of examples, and accuracies that are known."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from packaging.version import Version
from probes_data import QUESTION_TASKS, TEXT_TASKS
from stand_ins import ARC_ROWS, BELEBELE_ROWS, HELLASWAG_ROWS, OKAPI_ROWS, arc_rows, mmlu_rows

TASKS_DIR = Path(__file__).parents[2] / "lm_eval_tasks"
NO_TASK = "no_task.yaml"
# Of each group: ARC, HellaSwag, MMLU, Belebele.
GROUPS = {
    "greek": ("arc_el", "hellaswag_el", "mmlu_el", "belebele_ell_Grek"),
    "turkish": ("arc_tr", "hellaswag_tr", "mmlu_tr", "belebele_tur_Latn"),
    "hungarian": ("arc_hu", "hellaswag_hu", "m_mmlu_hu", "belebele_hun_Latn"),
    "english": ("arc_challenge", "hellaswag", "mmlu", "belebele_eng_Latn"),
}
# By text the first choice is the likeliest, by character the second one, and of letters the first.
LOG_LIKELIHOODS = {" x": -2.0, " yy longer": -3.0, " zzz far longer still": -19.0, " w": -5.0}
LOG_LIKELIHOODS |= {" A": -1.0, " B": -2.0, " C": -3.0, " D": -4.0}


class FixedLikelihoods(LM):
    """A model whose answer to every question is known, and which keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args[0] for request in requests]
        return [(LOG_LIKELIHOODS[request.args[1]], False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskManager, list[logging.LogRecord]]:
    """lm-eval's own tasks, these and `NO_TASK`, whose index takes ten seconds, and what lm-eval logs of them."""
    beside = tmp_path_factory.mktemp("beside")
    (beside / NO_TASK).write_text("dataset_path: x")
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("lm_eval"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before = logger.level
    # Not by the attribute: loggers below it keep in mind what their level was.
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        return TaskManager(include_path=[str(TASKS_DIR), str(beside)]), records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.fixture(scope="module")
def evaluate(hub: Path, indexed: tuple[TaskManager, list[logging.LogRecord]]) -> Callable[..., dict[str, Any]]:
    """Evaluates a model, as the user's command does, where the data sets lie."""
    manager, _ = indexed

    def run(tasks: list[str], model: Any, **options: Any) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(hub)
            output = lm_eval.simple_evaluate(
                model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options
            )
        assert output is not None
        return dict(output)

    return run


def members(manager: TaskManager, group: str) -> list[str]:
    """What a group has in it; the index of lm-eval before 0.4.12 has no more than where its file lies."""
    entry = manager.task_index[group]
    content = yaml.safe_load(Path(entry["yaml_path"]).read_text("utf-8")) if isinstance(entry, dict) else entry.cfg
    return list(content["task"])


def test_lm_eval_lists_all_tasks_and_groups(indexed: tuple[TaskManager, list[logging.LogRecord]]) -> None:
    manager, records = indexed
    # lm-eval logs a YAML that it cannot use at level DEBUG ("Skip ...", or "... could not be loaded"), and a repeated
    # name at WARNING.
    said = {record.getMessage(): record.levelno for record in records}
    left_out = [message for message in said if message.startswith("Skip") or message.endswith("could not be loaded")]
    assert [NO_TASK in message for message in left_out if NO_TASK in message or str(TASKS_DIR) in message] == [True]
    assert not [message for message, level in said.items() if level >= logging.WARNING and str(TASKS_DIR) in message]
    assert set(manager.all_subtasks) >= {*QUESTION_TASKS, *TEXT_TASKS}
    assert {name: members(manager, name) for name in manager.all_groups if "_probes" in name} == {
        "neuronmoe_probes": [*QUESTION_TASKS, *TEXT_TASKS],
        "neuronmoe_probes_el": ["capitals_el", "bits_per_byte_el"],
        "neuronmoe_probes_tr": ["exams_tr", "capitals_tr", "bits_per_byte_tr"],
        "neuronmoe_probes_hu": ["exams_hu", "capitals_hu", "bits_per_byte_hu"],
        "neuronmoe_probes_es": ["exams_es", "capitals_es", "bits_per_byte_es"],
    }


def test_groups_of_native_benchmarks_are_those_that_this_release_has(
    indexed: tuple[TaskManager, list[logging.LogRecord]], generate: ModuleType
) -> None:
    """Exams, INCLUDE, Global MMLU and MultiBLiMP, none of which is defined here."""
    manager, _ = indexed
    rows, installed = generate.read_table("natives.csv"), Version(importlib.metadata.version("lm-eval"))
    assert len(rows) == 10
    for group, own in groupby(rows, key=itemgetter("group")):
        since = {row["task"]: Version(row["since"]) for row in own}
        assert members(manager, group) == [*since]
        here = {name for name in since if since[name] <= installed}
        assert here <= {*manager.all_subtasks, *manager.all_groups, *manager.all_tags}
        assert not [name for name in since if (TASKS_DIR / name.split("_")[0]).exists()]


def share(rows: int, answer: int) -> float:
    """Of questions whose answers go round through four choices."""
    return sum(i % 4 == answer for i in range(rows)) / rows


def arc_share(answer: int) -> float:
    rows = arc_rows("", "", ARC_ROWS)
    return sum(row["choices"]["label"].index(row["answerKey"]) == answer for row in rows) / ARC_ROWS


@pytest.mark.parametrize("language", GROUPS)
def test_group_has_the_papers_row(language: str, evaluate: Callable[..., dict[str, Any]], subjects: list[str]) -> None:
    arc, hellaswag, mmlu, belebele = GROUPS[language]
    output = evaluate([f"neuronmoe_{language}"], FixedLikelihoods())
    results, shots = output["results"], output["n-shot"]
    assert set(output["group_subtasks"][f"neuronmoe_{language}"]) == {arc, hellaswag, mmlu, belebele}
    okapi = language == "hungarian"
    first, second = (share(OKAPI_ROWS, i) if okapi else arc_share(i) for i in (0, 1))
    assert first != second
    assert results[arc]["acc,none"] == pytest.approx(first)
    assert results[arc]["acc_norm,none"] == pytest.approx(second)
    assert results[hellaswag]["acc,none"] == pytest.approx(share(HELLASWAG_ROWS, 0))
    assert results[hellaswag]["acc_norm,none"] == pytest.approx(share(HELLASWAG_ROWS, 1))
    assert results[belebele]["acc,none"] == pytest.approx(share(BELEBELE_ROWS, 0))
    rows = [row for subject in subjects for row in mmlu_rows(subject, "test", 2)]
    pooled = share(OKAPI_ROWS, 0) if okapi else sum(row["answer"] == 0 for row in rows) / len(rows)
    assert results[mmlu]["acc,none"] == pytest.approx(pooled)
    assert (shots[arc], shots[hellaswag], shots[belebele]) == (25, 0, 0)
    leaves = [task for task in output["configs"] if "mmlu" in task]
    assert len(leaves) == 1 if okapi else len(leaves) == 57
    assert {shots[task] for task in leaves} == {5}


@pytest.mark.parametrize(
    ("language", "word", "answer_word"), [("greek", "Ερώτηση", "Απάντηση"), ("turkish", "Soru", "Cevap")]
)
def test_arc_asks_in_the_language(
    language: str, word: str, answer_word: str, evaluate: Callable[..., dict[str, Any]]
) -> None:
    code, model = GROUPS[language][0].removeprefix("arc_"), FixedLikelihoods()
    evaluate([f"arc_{code}"], model, num_fewshot=25)
    (prompt,) = {prompt for prompt in model.asked if prompt.endswith(f"{word}: {code} test 5?\n{answer_word}:")}
    *examples, _ = prompt.split("\n\n")
    rows = arc_rows(code, "train", 30)
    answers = [row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])] for row in rows]
    solved = {f"{word}: {row['question']}\n{answer_word}: {answer}" for row, answer in zip(rows, answers, strict=True)}
    assert len(set(examples)) == 25
    assert solved.issuperset(examples)


def test_hellaswag_is_cleaned_and_begins_its_sentences(evaluate: Callable[..., dict[str, Any]]) -> None:
    prompts = {}
    for code in ("el", "tr"):
        model = FixedLikelihoods()
        evaluate([f"hellaswag_{code}"], model)
        prompts[code] = model.asked[0]
    assert prompts["el"] == "Topic validation 0: How. It begins. Istanbul and Rome"
    # A heading that the Turkish data set has a word for begins a sentence, too; and the capital of i is İ.
    assert prompts["tr"] == "Topic validation 0:. How. It begins. İstanbul and Rome"


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("el", " Πρώτα [τίτλος] Μετά [βήμα] τέλος", "Πρώτα. Μετά τέλος"),
        ("el", "Πρώτα [title] Μετά", "Πρώτα. Μετά"),
        ("tr", "Önce [başlık] Sonra [adım] Bitti", "Önce. Sonra. Bitti"),
        ("tr", "Önce [alt adımlar] sonra", "Önce sonra"),
    ],
)
def test_marks_of_both_languages_are_taken_out(code: str, text: str, expected: str) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("hellaswag_documents", TASKS_DIR / "hellaswag" / "documents.py")
    assert spec is not None and spec.loader is not None
    documents = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(documents)
    assert documents.clean(text, code) == expected


def test_batches_change_nothing(evaluate: Callable[..., dict[str, Any]], tiny_model_dir: Path) -> None:
    tasks, likelihoods = ["arc_el", "arc_tr", "hellaswag_el", "hellaswag_tr", "mmlu_anatomy_el", "mmlu_anatomy_tr"], []
    for batch_size in (1, 8):
        arguments = {"model_args": f"pretrained={tiny_model_dir}", "device": "cpu", "batch_size": batch_size}
        output = evaluate(tasks, "hf", log_samples=True, **arguments)
        assert set(output["samples"]) == set(tasks)
        samples = [sample for task in tasks for sample in sorted(output["samples"][task], key=itemgetter("doc_id"))]
        likelihoods.append([float(choice[0]) for sample in samples for choice in sample["filtered_resps"]])
    assert likelihoods[1] == pytest.approx(likelihoods[0], rel=1e-5)
