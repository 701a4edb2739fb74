"""Write the lm-eval task YAMLs of the probes: `python lm_eval_tasks/generate_probes.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generate import quote

from neuronmoe_plugins.files import write_text

FOLDER = Path(__file__).parent / "probes"
HEADER = "# Written by lm_eval_tasks/generate_probes.py; change that instead.\n"
# Not *.yaml, so that lm-eval does not take them for tasks.
QUESTIONS_TEMPLATE = "_questions_yaml"
TEXT_TEMPLATE = "_text_yaml"


@dataclass(frozen=True)
class Wording:
    """The words of a probe's prompt, in its language; the answer follows `answer_label`."""

    question_label: str
    answer_label: str
    introduction: str = ""


EXAMS = {
    "hu": Wording("Kérdés", "Válasz"),
    "tr": Wording("Soru", "Cevap"),
    "es": Wording("Pregunta", "Respuesta"),
}
# Labels instead of a sentence: in all four languages a name takes other endings or articles inside a sentence.
CAPITALS = {
    "el": Wording("Χώρα", "Πρωτεύουσα", "Χώρες του κόσμου και οι πρωτεύουσές τους."),
    "tr": Wording("Ülke", "Başkent", "Dünya ülkeleri ve başkentleri."),
    "hu": Wording("Ország", "Főváros", "A világ országai és fővárosaik."),
    "es": Wording("País", "Capital", "Países del mundo y sus capitales."),
}
TEXT_LANGUAGES = ("el", "tr", "hu", "es", "en", "zh")


def render() -> dict[str, str]:
    """All files: name -> content."""
    exams = {f"exams_{language}": wording for language, wording in EXAMS.items()}
    capitals = {f"capitals_{language}": wording for language, wording in CAPITALS.items()}
    files = {QUESTIONS_TEMPLATE: render_questions_template(), TEXT_TEMPLATE: render_text_template()}
    for task, wording in {**exams, **capitals}.items():
        files[f"{task}.yaml"] = render_questions(task, wording)
    for language in TEXT_LANGUAGES:
        files[f"bits_per_byte_{language}.yaml"] = render_text(language)
    tasks = [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]
    for language in CAPITALS:
        members = [task for task in tasks if task.endswith(f"_{language}")]
        files[f"neuronmoe_probes_{language}.yaml"] = render_group(f"neuronmoe_probes_{language}", members)
    files["neuronmoe_probes.yaml"] = render_group("neuronmoe_probes", tasks)
    return files


def render_questions_template() -> str:
    return f"""{HEADER}custom_dataset: !function tasks.load_questions
test_split: test
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
process_results: !function tasks.score_choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
  - metric: chance
    aggregation: !function statistics.fmean  # lm-eval would give its own mean a standard error
    higher_is_better: null
metadata:
  version: 1.0
"""


def render_text_template() -> str:
    return f"""{HEADER}custom_dataset: !function tasks.load_text
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
metadata:
  version: 1.0
"""


def render_questions(task: str, wording: Wording) -> str:
    prompt = f"{wording.question_label}: {{{{question}}}}\n{wording.answer_label}:"
    # lm-eval puts nothing between the description and the first question.
    description = f"description: {quote(wording.introduction + chr(10) * 2)}\n" if wording.introduction else ""
    return f"""{HEADER}include: {QUESTIONS_TEMPLATE}
task: {task}
dataset_kwargs:
  probe: {task}
{description}doc_to_text: {quote(prompt)}
"""


def render_text(language: str) -> str:
    return f"""{HEADER}include: {TEXT_TEMPLATE}
task: bits_per_byte_{language}
dataset_kwargs:
  probe_language: {language}
"""


def render_group(name: str, members: list[str]) -> str:
    lines = "".join(f"  - {member}\n" for member in members)
    return f"""{HEADER}group: {name}
task:
{lines}metadata:
  version: 1.0
"""


if __name__ == "__main__":
    for file_name, content in render().items():
        write_text(FOLDER / file_name, content)
