"""The runs of a study: one per arm, language, learning rate and seed; their steps, and which of these are done."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from neuronmoe_plugins.comparison.lm_eval_results import Results, read_results
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.evaluation import run_lm_eval, task_name
from neuronmoe_plugins.files import new_directory, read_json, sha256_of, stamp, write_json
from neuronmoe_plugins.steps import Start, Step, run_command, start_process, state_of
from neuronmoe_plugins.study.arguments import Values
from neuronmoe_plugins.study.trainings import Training

# What says where things are, and not what is trained.
PLACES = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "output_dir", "use_cpu", "overwrite_output_dir")
# Beginnings of the names of variables that do.
PLACES_OF_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_")
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")
BITS_PER_BYTE = "bits_per_byte,none"


@dataclass(frozen=True)
class Run:
    """One training of both stages, with an evaluation behind each; of the base model an evaluation alone.

    Attributes:
        training: The arm and language.
        rate: Learning rate of stage 1.
        seed: Of LLaMA-Factory.
        device: The GPU that it has for itself, as CUDA_VISIBLE_DEVICES names it.
        start: How its programs are started.
    """

    training: Training
    rate: float | None = None
    seed: int | None = None
    device: str | None = None
    start: Start = start_process

    @property
    def name(self) -> str:
        """How errors and progress call it."""
        arm, language = self.training.arm.name, self.training.target.language
        return f"{arm} {language}" + ("" if self.rate is None else f", learning rate {self.rate:g}, seed {self.seed}")

    @property
    def folder(self) -> Path:
        """Of all that it writes."""
        language = self.training.target.language
        own = language if self.rate is None else f"{language}_{self.rate:g}_{self.seed}"
        return self.training.output / "runs" / self.training.arm.name / own

    @property
    def stages(self) -> tuple[str, ...]:
        """What is evaluated."""
        return tuple(self.training.stages) or ("base",)

    @property
    def stamps(self) -> Path:
        """Folder of what says which steps are done."""
        return self.folder / "steps"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its programs."""
        return {
            **self.training.spec.environment,
            **({} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device}),
        }

    @cached_property
    def steps(self) -> list[Step]:
        """In order; each depends on those before it, so that evaluations, which may be done again, come last."""
        model, found = _model(self.training.arm.model), []
        for stage in self.training.stages:
            values = {key: value for key, value in self.arguments(stage).items() if key not in PLACES}
            parameters = {"arguments": values, "model": model, "data": self._data(values), **self._variables()}
            outputs = [self.folder / stage / "train_results.json"]
            found.append(Step(stage, partial(self.train, stage), outputs, parameters))
        parameters = {"evaluation": self.training.spec.evaluation, "model": model}
        parameters |= {"texts": self._texts(), "tasks": self._tasks(), **self._variables()}
        for stage in self.stages:
            outputs = [self.evaluation(stage)]
            found.append(Step(f"evaluate-{stage}", partial(self.evaluate, stage), outputs, parameters))
        return found

    @property
    def states(self) -> list[str]:
        """Of every step `done`, `stale` or `left`; what follows one that is not done is not done either."""
        found = [state_of(step, self.stamps) for step in self.steps]
        first = next((place for place, state in enumerate(found) if state != "done"), len(found))
        return [state if place < first or state == "stale" else "left" for place, state in enumerate(found)]

    @property
    def done_steps(self) -> list[Step]:
        """Those that need not be done again."""
        return [step for step, state in zip(self.steps, self.states, strict=True) if state == "done"]

    @property
    def is_done(self) -> bool:
        """Whether every step is."""
        return set(self.states) == {"done"}

    def arguments(self, stage: str) -> Values:
        """All that LLaMA-Factory is told for a stage."""
        values = {"learning_rate": self.rate, **self.training.stages[stage], "seed": self.seed}
        values["output_dir"] = str(self.folder / stage)
        if stage == "stage1":
            values["learning_rate"] = self.rate
        elif self.training.saves_model:
            values["model_name_or_path"] = str(self.folder / "stage1")
            # What LLaMA-Factory saves for a model without a chat template is one that it cannot read again.
            values.setdefault("template", "empty")
        else:
            values["adapter_name_or_path"] = str(self.folder / "stage1")
        return values

    def train(self, stage: str) -> None:
        """Train a stage in LLaMA-Factory."""
        recipe, folder = self.folder / f"{stage}.yaml", self.folder / stage
        write_json(recipe, self.arguments(stage))
        if folder.exists():  # an adapter of another method there would be loaded beside what is saved
            shutil.rmtree(folder)
        if self.training.allocation is not None:
            self.training.allocation.save(self.folder / "allocation.yaml")
        try:
            log = self.folder / f"{stage}.log"
            run_command(["llamafactory-cli", "train", recipe], log, env=self.environment, start=self.start)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)  # which may keep a full disk full
            raise

    def evaluate(self, stage: str) -> None:
        """Measure a stage, or the base model, on all texts and tasks by lm-eval."""
        model: dict[str, Any] = {"pretrained": self.training.arm.model}
        if self.training.saves_model:
            model = {"pretrained": self.folder / stage}
        elif not self.training.is_base:
            model["peft"] = self.folder / stage
        given = dict(self.training.spec.evaluation)
        options = ["--batch_size", str(given.pop("batch_size", 1)), "--device", str(given.pop("device", _device()))]
        tasks = [*map(task_name, self._texts()), *self._tasks()]
        options.append("--log_samples")
        log = self.folder / f"{stage}_evaluation.log"
        with new_directory(self.evaluation(stage)) as folder:
            places = (self.training.output / "tasks", folder, log)
            run_lm_eval({**model, **given}, tasks, *places, options, self.environment, self.start)
        self.results(stage)  # so that a training that diverged is a run that failed, and the others go on

    def evaluation(self, stage: str) -> Path:
        """Folder of lm-eval's results."""
        return self.folder / f"{stage}_evaluation"

    def results(self, stage: str) -> Results:
        """What lm-eval found; raises `UserError` if it is not there."""
        return read_results(self.evaluation(stage))

    def bits_per_byte(self) -> float:
        """Mean over the new language's texts after the last stage."""
        tasks = self.results(self.stages[-1]).tasks
        values = [tasks[task_name(name)].scores[BITS_PER_BYTE].value for name in self.training.target.texts]
        return sum(values) / len(values)

    def _texts(self) -> dict[str, str]:
        texts = self.training.spec.texts_of(self.training.target.language)
        return {name: _checksum(file) for name, file in texts.items()}

    def _tasks(self) -> list[str]:
        return list(self.training.spec.tasks_of(self.training.target.language))

    def _variables(self) -> dict[str, Any]:
        """Those of the spec that may change a number; nothing where it has none of its own."""
        given = dict(self.training.spec.environment)
        if given["OMP_NUM_THREADS"] == "1":  # as everywhere
            del given["OMP_NUM_THREADS"]
        own = {name: value for name, value in given.items() if not name.startswith(PLACES_OF_VARIABLES)}
        return {"environment": own} if own else {}

    def _data(self, values: Values) -> dict[str, Any]:
        folder = self.training.spec.dataset_dir
        info = read_json(folder / "dataset_info.json")
        return {name: _contents(folder, info[name]) for name in values["dataset"].split(",")}


def trials_of(training: Training) -> list[Run]:
    """Those by which its learning rate is chosen: all of them, with the first seed; of the base model none."""
    return [Run(training, rate, training.arm.seeds[0]) for rate in training.arm.learning_rates]


def best_of(trials: Sequence[Run]) -> Run | None:
    """The one that is best in the new language; None as long as not all are done."""
    if len(trials) == 1:
        return trials[0]
    return min(trials, key=Run.bits_per_byte) if trials and all(run.is_done for run in trials) else None


def known_runs(training: Training) -> list[Run]:
    """Those of which all is known: all trials, and then the best learning rate with the other seeds."""
    if training.is_base:
        return [Run(training)]
    trials = trials_of(training)
    best = best_of(trials)
    return trials + ([] if best is None else [replace(best, seed=seed) for seed in training.arm.seeds[1:]])


def chosen_runs(training: Training) -> list[Run]:
    """Those at the best learning rate that are done, one per seed."""
    best = best_of(trials_of(training))
    rate = None if best is None else best.rate
    return [run for run in known_runs(training) if run.is_done and run.rate == rate]


def count_runs(training: Training) -> int:
    """How many there will be."""
    return 1 if training.is_base else len(training.arm.learning_rates) + len(training.arm.seeds) - 1


def count_steps(training: Training) -> int:
    """How many steps they will have."""
    return count_runs(training) * (2 * len(training.stages) or 1)


def _contents(folder: Path, entry: Mapping[str, Any]) -> Any:
    """What tells a data set from another: its entry, and the checksum of its files if they are here."""
    path = folder / str(entry.get("file_name", ""))
    files = sorted(path.rglob("*")) if path.is_dir() and entry.get("file_name") else [path]
    return [entry, [_checksum(file) for file in files if file.is_file()]]


def _checksum(file: Path) -> str:
    return _checksum_of(file, *stamp(file))


@cache
def _checksum_of(file: Path, *_stamp: int) -> str:
    return sha256_of([file])


def _model(name: str) -> Any:
    """What tells a model from another: its name, or the checksums of a folder's weights, config and tokenizer."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    return {file.name: _checksum(file) for pattern in MODEL_FILES for file in sorted(folder.glob(pattern))}


def _device() -> str:
    from neuronmoe_plugins.neurons.loading import default_device

    return default_device()
