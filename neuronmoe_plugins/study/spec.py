"""What a study is asked for, read from its YAML: texts, languages, how to train, and the arms that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.evaluation import check_documents
from neuronmoe_plugins.languages import CODE
from neuronmoe_plugins.models import require_model
from neuronmoe_plugins.reading import Fields, filled_text, matching, read_yaml
from neuronmoe_plugins.study.arguments import STAGES, Values, by_stage, mapping, names, rates, seeds, values_of
from neuronmoe_plugins.study.arms import BASE, ArmSpec, read_arms

TOP = (
    *("model", "dataset_dir", "source", "targets", "learning_rates", "seeds", "training", *STAGES),
    *("evaluation", "environment", "arms", "claims"),
)
SOURCE = ("language", "texts", "tasks")
TARGET = ("train", "replay", "review", "texts", "tasks", "analysis")


@dataclass(frozen=True)
class Target:
    """A language to learn.

    Attributes:
        language: Its code.
        train: Data sets of dataset_info.json for stage 1.
        replay: Those of the languages to keep, for stage 2.
        review: Those of the new language for stage 2.
        texts: Name -> held-out file.
        tasks: Of lm-eval.
        analysis: Folder of `neuronmoe analyze`, from which arms allocate.
    """

    language: str
    train: tuple[str, ...]
    replay: tuple[str, ...]
    review: tuple[str, ...]
    texts: Mapping[str, Path]
    tasks: tuple[str, ...]
    analysis: Path | None


@dataclass(frozen=True)
class Claim:
    """What the study is to settle.

    Attributes:
        text: In words.
        better: The arm of which it is said that it has fewer bits per byte.
        than: The arms of which each is said to have more.
    """

    text: str
    better: str
    than: tuple[str, ...]


@dataclass(frozen=True)
class StudySpec:
    """A whole study.

    Attributes:
        path: The file.
        model: Folder or hub name of the base model.
        dataset_dir: Folder of dataset_info.json.
        source: Code of the language that the model knows.
        texts: Name -> held-out file of that language.
        tasks: Of lm-eval, in that language.
        targets: The languages to learn, by code.
        stages: Those that are trained.
        evaluation: lm-eval's `--model_args`, and its `batch_size`.
        environment: Variables of all programs.
        arms: In the order of the file.
        claims: Likewise.
    """

    path: Path
    model: str
    dataset_dir: Path
    source: str
    texts: Mapping[str, Path]
    tasks: tuple[str, ...]
    targets: Mapping[str, Target]
    stages: tuple[str, ...]
    evaluation: Values
    environment: Mapping[str, str]
    arms: tuple[ArmSpec, ...]
    claims: tuple[Claim, ...]

    def texts_of(self, target: str) -> dict[str, Path]:
        """All held-out files that a training in this language is measured on."""
        return {**self.targets[target].texts, **self.texts}

    def tasks_of(self, target: str) -> tuple[str, ...]:
        """All tasks of lm-eval that it is measured by."""
        return tuple(dict.fromkeys((*self.targets[target].tasks, *self.tasks)))


def load_spec(path: Path) -> StudySpec:
    """Read a spec, whose paths are relative to its folder.

    Raises:
        UserError: naming the file and the key at fault.
    """
    top, base = Fields(read_yaml(path, broken="is no YAML"), str(path), TOP), path.parent
    source = Fields(top.required("source"), f"{path}: source", SOURCE)
    given = mapping(top, "targets")
    targets = {str(code): _target(code, value, f"{path}: targets: {code}", base) for code, value in given.items()}
    model = top.required("model", filled_text)
    model = str((base / model).resolve()) if (base / model).is_dir() else model
    require_model(f"{path}: model", model)
    own_rates, own_seeds = top.required("learning_rates", rates), top.required("seeds", seeds)
    defaults = ArmSpec("", "", str(path), "", {}, by_stage(top), own_rates, own_seeds, tuple(targets))
    arms = tuple(read_arms(top, defaults))
    spec = StudySpec(
        path=path,
        model=model,
        dataset_dir=(base / top.required("dataset_dir", filled_text)).resolve(),
        source=source.required("language", matching(CODE, "a language code such as en")),
        texts=_texts(source, base),
        tasks=source.optional("tasks", names, ()),
        targets=targets,
        stages=STAGES if top.has("stage2") else STAGES[:1],
        evaluation=values_of(top, "evaluation"),
        environment={"OMP_NUM_THREADS": "1"} | {key: str(own) for key, own in values_of(top, "environment").items()},
        arms=arms,
        claims=tuple(_claims(top, [BASE, *(arm.name for arm in arms)])),
    )
    _check_texts(spec)
    return spec


def _target(code: object, value: object, where: str, base: Path) -> Target:
    if not isinstance(code, str) or not CODE.fullmatch(code):
        raise UserError(f"{where} is no language code such as el; put it in quotes if it is one")
    fields = Fields(value, where, TARGET)
    texts = _texts(fields, base)
    if not texts:
        raise UserError(f"{where}: it has no held-out text, by which learning rates are chosen; add texts")
    analysis = fields.optional("analysis", filled_text)
    return Target(
        language=code,
        train=fields.required("train", names),
        replay=fields.required("replay", names),
        review=fields.optional("review", names, ()),
        texts=texts,
        tasks=fields.optional("tasks", names, ()),
        analysis=None if analysis is None else base / analysis,
    )


def _claims(top: Fields, arms: Sequence[str]) -> Iterator[Claim]:
    for text, value in (mapping(top, "claims") if top.has("claims") else {}).items():
        fields = Fields(value, f"{top.where}: claims: {text}", ("better", "than"))
        claim = Claim(str(text), fields.required("better", filled_text), fields.required("than", names))
        for name in (claim.better, *claim.than):
            if name not in arms:
                raise UserError(f"{fields.where}: no arm is called {name}; there are: {', '.join(arms)}")
        yield claim


def _texts(fields: Fields, base: Path) -> dict[str, Path]:
    if not fields.has("texts"):
        return {}
    texts = {str(name): (base / str(file)).resolve() for name, file in mapping(fields, "texts").items()}
    for name, file in texts.items():
        check_documents(name, file)
    return texts


def _check_texts(spec: StudySpec) -> None:
    """Every held-out text has a name and a role of its own."""
    seen: dict[Path, str] = {}
    for texts in (spec.texts, *(target.texts for target in spec.targets.values())):
        for name, file in texts.items():
            if name in seen.values():
                raise UserError(f"{spec.path}: two texts are called {name}; name one otherwise")
            if file in seen:
                raise UserError(f"{spec.path}: the texts {seen[file]} and {name} are the same file, {file}")
            seen[file] = name
