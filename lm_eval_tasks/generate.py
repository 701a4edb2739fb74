"""Write the lm-eval task YAMLs from the tables beside this file: `python lm_eval_tasks/generate.py`.

`languages.csv` has the data sets and words of the languages that lm-eval lacks, `subjects.csv` the subjects of MMLU,
`groups.csv` the tasks of each group of the paper's, and `natives.csv` those of the groups `neuronmoe_*_native`, with
the release of lm-eval that first has each.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

HERE = Path(__file__).parent
CATEGORIES = ("stem", "humanities", "social_sciences", "other")
TEMPLATE_NAME = "_template_yaml"  # not *.yaml, so that lm-eval does not take it for a task
HEADER = "# Written by lm_eval_tasks/generate.py from the tables beside it; change those instead.\n"
# NeuronMoE (arXiv 2603.05046), section 4.1.
NUM_FEWSHOT = {"arc": 25, "hellaswag": 0, "mmlu": 5, "belebele": 0}
# In lm-eval these are groups of tasks, and named as such.
GROUPS_OF_TASKS = ("mmlu", "mmlu_el", "mmlu_tr")


@dataclass(frozen=True)
class Language:
    """Where a language's data sets lie and how its prompts are worded: a row of `languages.csv`."""

    language: str
    mmlu: str
    arc: str
    hellaswag: str
    introduction: str
    topic_word: str
    question_word: str
    answer_word: str


@dataclass(frozen=True)
class Subject:
    """One MMLU subject: its config name in the data set, its category, and its name in each language."""

    name: str
    category: str
    titles: dict[str, str]


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file beside this one, in the file's order."""
    with (HERE / name).open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


LANGUAGES = {row["language"]: Language(**row) for row in read_table("languages.csv")}


def read_subjects() -> list[Subject]:
    """The rows of `subjects.csv`, in the file's order."""
    return [
        Subject(row["subject"], row["category"], {code: row[code] for code in LANGUAGES})
        for row in read_table("subjects.csv")
    ]


def render_all() -> dict[str, str]:
    """All files: path below this folder, with `/` between its parts, to content."""
    files = {f"mmlu_{code}/{name}": content for code in LANGUAGES for name, content in render(code).items()}
    for code, language in LANGUAGES.items():
        files[f"arc/arc_{code}.yaml"] = render_arc(language)
        files[f"hellaswag/hellaswag_{code}.yaml"] = render_hellaswag(language)
    for row in read_table("groups.csv"):
        files[f"neuronmoe/{row['group']}.yaml"] = render_paper_group(row)
    for group, rows in groupby(read_table("natives.csv"), key=itemgetter("group")):
        files[f"neuronmoe/{group}.yaml"] = render_native_group(group, [row["task"] for row in rows])
    return files


def render(code: str, dataset_path: str | None = None) -> dict[str, str]:
    """All files of one language's MMLU.

    Args:
        code: a key of `LANGUAGES`.
        dataset_path: a data set with the same configs, splits and fields to use in place of the hub's, such as a
            local folder.

    Returns:
        File name to content: one template, one YAML per subject, one per category and one for the whole.
    """
    language = LANGUAGES[code]
    subjects = read_subjects()
    files = {TEMPLATE_NAME: render_template(language, dataset_path or language.mmlu)}
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
    description = f"{language.introduction} {language.topic_word}: {subject.titles[language.language]}.\n\n"
    return f"""{HEADER}include: {TEMPLATE_NAME}
task: mmlu_{subject.name}_{language.language}
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


def render_arc(language: Language) -> str:
    """ARC Challenge as lm-eval asks it in English; some questions have three or five choices, or digits for letters."""
    question = f"{language.question_word}: {{{{question}}}}\n{language.answer_word}:"
    return f"""{HEADER}task: arc_{language.language}
dataset_path: {quote(language.arc)}
dataset_name: ARC-Challenge
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
fewshot_split: train
doc_to_text: {quote(question)}
doc_to_choice: {quote("{{choices.text}}")}
doc_to_target: {quote("{{choices.label.index(answerKey)}}")}
should_decontaminate: true
doc_to_decontamination_query: {quote("{{question}}")}
{ACCURACIES}"""


def render_hellaswag(language: Language) -> str:
    """HellaSwag as lm-eval asks it in English: the labels of the test split are not public."""
    return f"""{HEADER}task: hellaswag_{language.language}
dataset_path: {quote(language.hellaswag)}
output_type: multiple_choice
validation_split: validation
process_docs: !function documents.{language.language}
doc_to_text: {quote("{{query}}")}
doc_to_choice: choices
doc_to_target: {quote("{{label}}")}
{ACCURACIES}"""


ACCURACIES = """metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def render_paper_group(row: dict[str, str]) -> str:
    """The paper's benchmarks in one language, each with the paper's number of examples."""
    lines = "".join(
        f"  - {'group' if row[benchmark] in GROUPS_OF_TASKS else 'task'}: {row[benchmark]}\n    num_fewshot: {shots}\n"
        for benchmark, shots in NUM_FEWSHOT.items()
    )
    return f"""{HEADER}group: {row["group"]}
task:
{lines}metadata:
  version: 1.0
"""


def render_native_group(name: str, members: list[str]) -> str:
    """Benchmarks that lm-eval has, with as many examples as they or the command say."""
    lines = "".join(f"  - {member}\n" for member in members)
    return f"""{HEADER}group: {name}
task:
{lines}metadata:
  version: 1.0
"""


def quote(text: str) -> str:
    """A string as a YAML double-quoted scalar (a JSON string is one)."""
    return json.dumps(text, ensure_ascii=False)


def write(directory: Path, files: dict[str, str]) -> None:
    """Write each file into `directory`; folders are made if missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(content, encoding="utf-8", newline="\n")
        temporary.replace(path)


if __name__ == "__main__":
    write(HERE, render_all())
