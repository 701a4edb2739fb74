"""What a study is asked for, read from its YAML: texts, languages, how to train, and the arms that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from neuronmoe_plugins.allocation.scores import read_origin
from neuronmoe_plugins.allocation.strategies import AllocationOrigin
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.evaluation import check_documents
from neuronmoe_plugins.languages import CODE
from neuronmoe_plugins.reading import Fields, filled_text, matching, read_yaml
from neuronmoe_plugins.study.arguments import (
    STAGES,
    Values,
    by_stage,
    mapping,
    model_of,
    names,
    rates,
    seeds,
    values_of,
)
from neuronmoe_plugins.study.arms import ArmSpec, base_arms, read_arms

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
        dataset_dir: Folder of dataset_info.json.
        source: Code of the language that the model knows.
        texts: Name -> held-out file of that language.
        tasks: Of lm-eval, in that language.
        targets: The languages to learn, by code.
        evaluation: lm-eval's `--model_args`, and its `batch_size`.
        environment: Variables of all programs.
        bases: The base models, the first one that of the whole study.
        arms: In the order of the file.
        claims: Likewise.
    """

    path: Path
    dataset_dir: Path
    source: str
    texts: Mapping[str, Path]
    tasks: tuple[str, ...]
    targets: Mapping[str, Target]
    evaluation: Values
    environment: Mapping[str, str]
    bases: tuple[ArmSpec, ...]
    arms: tuple[ArmSpec, ...]
    claims: tuple[Claim, ...]

    @cached_property
    def origin(self) -> Callable[[Path], AllocationOrigin]:
        """Reads what arms allocate from, each folder or file once."""
        return cache(read_origin)

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
    own_rates, own_seeds = top.required("learning_rates", rates), top.required("seeds", seeds)
    model, training = model_of(top, base), by_stage(top)
    if not top.has("stage2"):
        del training["stage2"]
    defaults = ArmSpec("", "", str(path), "", model, {}, training, own_rates, own_seeds, tuple(targets))
    arms = tuple(read_arms(top, defaults))
    bases = tuple(base_arms(arms, defaults))
    spec = StudySpec(
        path=path,
        dataset_dir=(base / top.required("dataset_dir", filled_text)).resolve(),
        source=source.required("language", matching(CODE, "a language code such as en")),
        texts=_texts(source, base),
        tasks=source.optional("tasks", names, ()),
        targets=targets,
        evaluation=values_of(top, "evaluation"),
        environment={"OMP_NUM_THREADS": "1"} | {key: str(own) for key, own in values_of(top, "environment").items()},
        bases=bases,
        arms=arms,
        claims=tuple(_claims(top, [arm.name for arm in (*bases, *arms)])),
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
