"""Writes what follows from the experiments below, and the tables of README.md: `python recipes/generate.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.machines import FSDP, Deepspeed
from neuronmoe_plugins.recipes import Extension, Recipe

HERE = Path(__file__).parent
TABLE = ("<!-- recipes: written by generate.py -->\n", "<!-- end of recipes -->")
OLD_LANGUAGES = {"en": "English", "zh": "Chinese", "es": "Spanish"}
NEW_LANGUAGES = {"el": "Greek", "tr": "Turkish", "hu": "Hungarian"}
REPLAY_DOCUMENTS = 50_000  # of each old language (paper, Appendix D)

# The paper's total (Appendix D), and the trainings it reports as its own in Tables 1, 3 and 11: on Llama-3.2-3B six of
# NeuronMoE (English-only, Greek, Turkish, Hungarian, Nepali, Bengali) and LayerMoE, on Qwen1.5-1.8B one of each.
GPU_HOURS, TRAININGS = 120, 9
# Memory of one of its GPUs, and what of it may hold weights, gradients and optimizer: the rest is for activations.
GPU_GB, STATE_GB = 96, 72


@dataclass(frozen=True)
class Base:
    """A base model's name on the hub and the sizes in its config.json, of attention without biases."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    key_value_size: int
    vocab_size: int

    @property
    def mlp(self) -> int:
        """Parameters of one MLP: gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """Parameters that each token is multiplied with: projections and the output embedding."""
        attention = 2 * self.hidden_size * (self.hidden_size + self.key_value_size)
        return self.num_layers * (attention + self.mlp) + self.vocab_size * self.hidden_size

    def added_parameters(self, num_experts: list[int]) -> int:
        return sum(BlockShapes(self.hidden_size, [self.mlp] * self.num_layers).added_parameters(num_experts))


@dataclass(frozen=True)
class Experiment:
    """One training of both stages.

    Attributes:
        base: The model to extend.
        language: Code of the language to learn.
        num_experts: Experts per layer, the original MLP included.
        source: Where they come from.
        prefix: In front of stage1.yaml and stage2.yaml, and below the output folder.
        after: The experiment whose adapter this one extends.
    """

    base: Base
    language: str
    num_experts: list[int]
    source: str
    prefix: str = ""
    after: Experiment | None = None

    @property
    def languages(self) -> list[str]:
        """The new languages, in the order in which they are learned."""
        return [*(self.after.languages if self.after else []), self.language]

    @property
    def new_experts(self) -> int:
        return sum(self.num_experts) - (sum(self.after.num_experts) if self.after else self.base.num_layers)

    @property
    def gpus(self) -> int:
        """The fewest GPUs, in powers of two, that hold the training's state under ZeRO-2.

        In bytes: 2 for each weight on each GPU, and 14 for each trained one, shared among them: a gradient of 2 and, in
        float32, the weight and two moments.
        """
        trained = self.new_experts * self.base.mlp
        weights = 2 * (self.base.parameters + self.base.added_parameters(self.num_experts))
        return next(n for n in (1, 2, 4, 8, 16) if (weights + 14 * trained / n) / 1e9 <= STATE_GB)

    @property
    def active_parameters(self) -> int:
        """Parameters per token with top-2: one copy more in each mixture."""
        return self.base.parameters + sum(experts > 1 for experts in self.num_experts) * self.base.mlp


LLAMA = Base("meta-llama/Llama-3.2-3B", 28, 3072, 8192, 1024, 128256)
QWEN = Base("Qwen/Qwen1.5-1.8B", 24, 2048, 5504, 2048, 151936)

PAPER = "arXiv 2603.05046"
GREEK = [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 4, 1, 4, 2, 2, 4, 4]
TURKISH = [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 3]
HUNGARIAN = [5, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 3, 4, 6, 3, 2]
ENGLISH = [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2]
LAYERMOE = [5, 5, 5, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4]
QWEN_GREEK = [4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 6]


def _further(after: Experiment, language: str, num_experts: list[int], table: str) -> Experiment:
    """The experiment that adds, to those of another, the new experts that a language has alone."""
    name = NEW_LANGUAGES[language]
    counts = [old + alone - 1 for old, alone in zip(after.num_experts, num_experts, strict=True)]
    source = f"the older experts and, from {PAPER}, {table}, the new ones of {name} alone"
    return Experiment(after.base, language, counts, source, f"{name.lower()}-", after)


def _continual() -> list[Experiment]:
    first = Experiment(LLAMA, "el", GREEK, f"{PAPER}, Table 2", "greek-")
    second = _further(first, "tr", TURKISH, "Table 8")
    return [first, second, _further(second, "hu", HUNGARIAN, "Table 8")]


# Folder -> its trainings, in the order in which they run.
EXPERIMENTS: dict[str, list[Experiment]] = {
    "llama3.2-3b-greek": [Experiment(LLAMA, "el", GREEK, f"{PAPER}, Table 2")],
    "llama3.2-3b-turkish": [Experiment(LLAMA, "tr", TURKISH, f"{PAPER}, Table 8")],
    "llama3.2-3b-hungarian": [Experiment(LLAMA, "hu", HUNGARIAN, f"{PAPER}, Table 8")],
    "llama3.2-3b-greek-english-only": [
        Experiment(LLAMA, "el", ENGLISH, f"{PAPER}, Equations 3 and 4 with floor on English in Table 6")
    ],
    "llama3.2-3b-greek-layermoe": [Experiment(LLAMA, "el", LAYERMOE, f"LayerMoE in {PAPER}, Table 2")],
    "llama3.2-3b-greek-uniform": [
        Experiment(LLAMA, "el", [3] * 28, "MoE-LPR on this model in the published code of LayerMoE (arXiv 2505.22582)")
    ],
    "qwen1.5-1.8b-greek": [Experiment(QWEN, "el", QWEN_GREEK, f"{PAPER}, Table 9")],
    "llama3.2-3b-greek-turkish-hungarian": _continual(),
}


def recipe_files() -> dict[str, str]:
    """Path within this folder -> content."""
    files = {f"deepspeed/{config.file_name}": config.to_json() for config in Deepspeed}
    files["accelerate/fsdp.yaml"] = yaml.safe_dump(FSDP, sort_keys=False)
    for folder, experiments in EXPERIMENTS.items():
        files[f"{folder}/dataset_info.json"] = dataset_info(experiments[-1].languages)
        for experiment in experiments:
            recipe = make_recipe(folder, experiment)
            files[f"{folder}/{experiment.prefix}stage1.yaml"] = recipe.stage1()
            files[f"{folder}/{experiment.prefix}stage2.yaml"] = recipe.stage2()
    return files | {"README.md": readme((HERE / "README.md").read_text(encoding="utf-8"))}


def make_recipe(folder: str, experiment: Experiment) -> Recipe:
    """The two stages; a further language replays the new ones before it, which do not count as old."""
    *earlier, language = experiment.languages
    extends = None
    if experiment.after:
        extends = Extension(f"{_output(folder, experiment.after)}/stage2", experiment.after.num_experts)
    return Recipe(
        model=experiment.base.name,
        num_experts=experiment.num_experts,
        target_datasets=[f"{language}_train"],
        replay_datasets=[*(f"{old}_replay" for old in OLD_LANGUAGES), *(f"{code}_train" for code in earlier)],
        dataset_dir="data",
        output_dir=_output(folder, experiment),
        original_languages=list(OLD_LANGUAGES),
        allocation_source=experiment.source,
        extends=extends,
    )


def dataset_info(languages: list[str]) -> str:
    """The entries that a folder's YAMLs need in data/dataset_info.json, with the files of `neuronmoe data`."""

    def entry(code: str, role: str) -> dict[str, object]:
        return {"file_name": f"{code}_{role}.jsonl", "columns": {"prompt": "text"}, "language": code}

    info = {f"{code}_train": entry(code, "train") for code in languages}
    info |= {f"{code}_replay": entry(code, "replay") | {"num_samples": REPLAY_DOCUMENTS} for code in OLD_LANGUAGES}
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in info.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def readme(text: str) -> str:
    """The README with this version's table."""
    start, end = TABLE
    before, rest = text.split(start)
    _, after = rest.split(end)
    return before + start + "\n".join(_table()) + "\n" + end + after


def _table() -> Iterator[str]:
    yield "| Folder | Base model | Learns | Layers | Experts | of them new | Added parameters | GPUs | GPU hours |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for folder, experiments in EXPERIMENTS.items():
        last = experiments[-1]
        total, layers = sum(last.num_experts), last.base.num_layers
        cells = [
            f"`{folder}`",
            f"`{last.base.name}`",
            ", then ".join(NEW_LANGUAGES[code] for code in last.languages),
            layers,
            total,
            total - layers,
            f"{last.base.added_parameters(last.num_experts):,}",
            max(experiment.gpus for experiment in experiments),
            f"~{sum(map(gpu_hours, experiments)):.0f}",
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def gpu_hours(experiment: Experiment) -> float:
    """An equal share of the paper's total for its Greek training; others by the parameters that each token passes."""
    greek = EXPERIMENTS["llama3.2-3b-greek"][0]
    return GPU_HOURS / TRAININGS * experiment.active_parameters / greek.active_parameters


def _output(folder: str, experiment: Experiment) -> str:
    return f"runs/{folder}/{experiment.prefix.removesuffix('-')}".removesuffix("/")


if __name__ == "__main__":
    for name, text in recipe_files().items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
