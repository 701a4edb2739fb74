"""Write the lm-eval task YAMLs of `mmlu_el` and `mmlu_tr` from `subjects.csv`: `python lm_eval_tasks/generate.py`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CATEGORIES = ("stem", "humanities", "social_sciences", "other")
TEMPLATE_NAME = "_template_yaml"  # not *.yaml, so that lm-eval does not take it for a task
HEADER = "# Written by lm_eval_tasks/generate.py from subjects.csv; change those instead.\n"


@dataclass(frozen=True)
class Language:
    """Where a language's MMLU lives and how its prompt is worded."""

    code: str
    dataset_path: str
    introduction: str
    topic_word: str
    answer_word: str


LANGUAGES = {
    "el": Language(
        code="el",
        dataset_path="ilsp/mmlu_greek",
        introduction="Ερωτήσεις πολλαπλής επιλογής με τις απαντήσεις τους.",
        topic_word="Θέμα",
        answer_word="Απάντηση",
    ),
    "tr": Language(
        code="tr",
        dataset_path="malhajar/mmlu-tr",
        introduction="Cevaplarıyla birlikte çoktan seçmeli sorular.",
        topic_word="Konu",
        answer_word="Cevap",
    ),
}


@dataclass(frozen=True)
class Subject:
    """One MMLU subject: its config name in the data set, its category, and its name in each language."""

    name: str
    category: str
    titles: dict[str, str]


def read_subjects() -> list[Subject]:
    """The rows of `subjects.csv`, in the file's order."""
    with (HERE / "subjects.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return [Subject(row["subject"], row["category"], {code: row[code] for code in LANGUAGES}) for row in rows]


def render(code: str, dataset_path: str | None = None) -> dict[str, str]:
    """All files of one language.

    Args:
        code: a key of `LANGUAGES`.
        dataset_path: a data set with the same configs, splits and fields to use in place of the hub's, such as a
            local folder.

    Returns:
        File name to content: one template, one YAML per subject, one per category and one for the whole.
    """
    language = LANGUAGES[code]
    subjects = read_subjects()
    files = {TEMPLATE_NAME: render_template(language, dataset_path or language.dataset_path)}
    for subject in subjects:
        files[f"mmlu_{subject.name}_{code}.yaml"] = render_task(language, subject)
    for category in CATEGORIES:
        members = [f"mmlu_{subject.name}_{code}" for subject in subjects if subject.category == category]
        files[f"mmlu_{category}_{code}.yaml"] = render_group(f"mmlu_{category}_{code}", category, members)
    members = [f"mmlu_{category}_{code}" for category in CATEGORIES]
    files[f"mmlu_{code}.yaml"] = render_group(f"mmlu_{code}", f"mmlu_{code}", members)
    return files


def render_template(language: Language, dataset_path: str) -> str:
    # `{{answer}}` rather than the plain field name: lm-eval then also accepts an index stored as text.
    prompt = (
        "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\n"
        f"{language.answer_word}:"
    )
    return f"""{HEADER}dataset_path: {quote(dataset_path)}
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
doc_to_text: {quote(prompt)}
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: {quote("{{answer}}")}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def render_task(language: Language, subject: Subject) -> str:
    # lm-eval puts nothing between the description and the first question.
    description = f"{language.introduction} {language.topic_word}: {subject.titles[language.code]}.\n\n"
    return f"""{HEADER}include: {TEMPLATE_NAME}
task: mmlu_{subject.name}_{language.code}
task_alias: {subject.name}
dataset_name: {subject.name}
description: {quote(description)}
"""


def render_group(name: str, alias: str, members: list[str]) -> str:
    lines = "".join(f"  - {member}\n" for member in members)
    return f"""{HEADER}group: {name}
group_alias: {alias}
task:
{lines}aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 1.0
"""


def quote(text: str) -> str:
    """A string as a YAML double-quoted scalar (a JSON string is one)."""
    return json.dumps(text, ensure_ascii=False)


def write(directory: Path, files: dict[str, str]) -> None:
    """Write each file into `directory`, which is made if missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = directory / f".{name}.part"
        temporary.write_text(content, encoding="utf-8", newline="\n")
        temporary.replace(directory / name)


if __name__ == "__main__":
    for language_code in LANGUAGES:
        write(HERE / f"mmlu_{language_code}", render(language_code))
