"""Layer scores: from the folder of an analysis, or from a JSON file of one's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import sha256_of
from neuronmoe_plugins.reading import is_count, is_number, list_of, list_of_length, read_json_object, shown

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.analysis import NeuronIdentity

ANALYZE_AGAIN = "run `neuronmoe analyze` again"
MEASURED_BY = {
    "layer_gradients": "gradient",
    "layer_spectra": "spectral",
    "layer_deviations": "parameter-deviation",
    "layer_knock_outs": "knock-out",
}
"""Keys of a summary -> the `--measure` of an analysis that gives them."""
FORM = 'a scores file is {"layer_scores": [..]}, or {"layer_similarities": [..]} for layer-similarity'
# Rounding in float32 can lift a mean cosine a little above 1.
LARGEST_COSINE = 1.001


class Origin(ABC):
    """What an allocation is made from.

    Attributes:
        path: The folder or file, as it was named.
        json_path: The analysis' summary.json, or the file itself.
        record: What the JSON file holds.
        num_layers: Decoder layers of the model.
        shapes: The sizes of the model's MLPs, None where they are not known.
        sha256: Checksum of the JSON file.
    """

    counts_neurons: bool
    """Whether scores are counted here, rather than read."""

    def __init__(self, path: Path, json_path: Path, record: dict[str, Any], num_layers: int) -> None:
        self.path, self.json_path = path, json_path
        self.record, self.num_layers = record, num_layers
        self.shapes: BlockShapes | None = read_shapes(json_path, record, num_layers)
        self.sha256 = sha256_of([json_path])

    @abstractmethod
    def check_languages(self, source: str | None, targets: Sequence[str]) -> None:
        """Raise `UserError` for languages that cannot be meant."""

    @abstractmethod
    def similarities(self, source: str | None, targets: Sequence[str]) -> list[float]:
        """How alike each layer treats source and targets: one mean cosine per layer."""

    def require(self, key: str) -> Any:
        """The value of a key; raises `UserError` naming file and key if it is missing or null."""
        if self.record.get(key) is None:
            raise UserError(f"{self.json_path} has no {key}; {self.remedy_for(key)}")
        return self.record[key]

    def require_shapes(self, rank: int | None, targets: ExpertTargets = ExpertTargets.MLP) -> BlockShapes:
        """The sizes of new experts of that rank, or of copies; raises `UserError` naming the keys that it lacks."""
        in_attention = targets is not ExpertTargets.MLP
        keys = ["hidden_size", "mlp_parameters"]
        keys += ["mlp_widths"] if rank is not None and targets is not ExpertTargets.ATTENTION else []
        keys += ["attention_widths", "attention_ranks"] if in_attention else []
        if missing := [key for key in keys if self.record.get(key) is None]:
            option = f"--expert-targets {targets.value}" if in_attention else "--max-added-parameters"
            raise UserError(
                f"{option} needs {', '.join(keys[:-1])} and {keys[-1]}: {self.json_path} has no {missing[0]}; "
                f"{self.remedy_for(missing[0])}"
            )
        shapes = self.shapes and self.shapes.of_rank(rank, targets)
        assert shapes is not None, "all keys are there"
        return shapes

    @abstractmethod
    def remedy_for(self, key: str) -> str:
        """What to do about a key that is missing or null."""


class AnalysisFolder(Origin):
    """The folder of an analysis; raises `UserError` if it is none, incomplete, or does not fit together."""

    counts_neurons = True

    def __init__(self, folder: Path) -> None:
        from neuronmoe_plugins.neurons.analysis import Analysis

        analysis = Analysis.load(folder)
        self.neurons = analysis.neurons
        super().__init__(folder, folder / "summary.json", analysis.summary, analysis.summary["num_layers"])

    def remedy_for(self, key: str) -> str:
        """To analyze again, unless the analysis looked for MLPs or attention and found none that it knows."""
        if key in MEASURED_BY:
            return f"{ANALYZE_AGAIN} with --measure {MEASURED_BY[key]}"
        of = {"mlp": "MLPs are", "attention": "attention is"}.get(key.partition("_")[0])
        return f"the model's {of} of no known kind" if of and key in self.record else ANALYZE_AGAIN

    @property
    def neuron_identity(self) -> NeuronIdentity:
        """What makes two neurons of a layer the same: module and unit ("module"), or the unit alone ("unit")."""
        identity = self.require("neuron_identity")
        if identity not in ("module", "unit"):
            wrong = f"neuron_identity is {shown(identity)}, not 'module' or 'unit'"
            raise UserError(f"{self.json_path}: {wrong}; {ANALYZE_AGAIN}")
        return identity

    def counts(self, *languages: str) -> list[int]:
        """Distinct neurons per layer in the union over languages (paper, Eq. 2)."""
        from neuronmoe_plugins.neurons.analysis import layer_counts

        return layer_counts(self.neurons, languages, self.num_layers, self.neuron_identity)

    def check_languages(self, source: str | None, targets: Sequence[str]) -> None:
        """Raise `UserError` for a language that was not analysed or is named twice."""
        languages = [*([] if source is None else [source]), *targets]
        known = self.record["languages"]
        for language in languages:
            if language not in known:
                raise UserError(f"{self.path} knows no language {language!r}; it has: {', '.join(known)}")
        if len(set(languages)) < len(languages):
            raise UserError(f"--source and --target name a language twice: {', '.join(languages)}")

    def require_languages(self, source: str | None, targets: Sequence[str]) -> tuple[str, Sequence[str]]:
        """Both, if there is a source and at least one target; raises `UserError` otherwise."""
        if source is None or not targets:
            raise UserError(f"{self.path} is an analysis: pass --source LANGUAGE and at least one --target LANGUAGE")
        return source, targets

    def similarities(self, source: str | None, targets: Sequence[str]) -> list[float]:
        """LayerMoE's similarity of the source (old) and the targets (new) in each layer."""
        old, new = self.require_languages(source, targets)
        languages = self.record["languages"]
        rows = [languages.index(language) for language in new]
        return [layer_similarity(cosines, [languages.index(old)], rows) for cosines in self._cosines(len(languages))]

    def measured(self, key: str, language: str | None = None) -> list[float]:
        """What `--measure` gave for each layer, under a key of `MEASURED_BY`; of a language where it is by language."""
        values = self.require(key)
        if language is not None:
            languages = values.get("languages") if isinstance(values, dict) else None
            values, key = (languages or {}).get(language), f"{key} of {language}"
        if not list_of_length(self.num_layers, is_number)(values):
            raise UserError(f"{self.json_path}: {key} must be {self.num_layers} numbers; {ANALYZE_AGAIN}")
        return [float(value) for value in values]

    def _cosines(self, size: int) -> list[list[list[float]]]:
        """Mean cosines between the languages, layers x size x size."""
        measured = self.require("mlp_input_similarity")
        layers: Any = measured.get("layers") if isinstance(measured, dict) else None
        table = list_of_length(size, list_of_length(size, is_number))
        if not list_of_length(self.num_layers, table)(layers):
            raise UserError(
                f"{self.json_path}: mlp_input_similarity must have {self.num_layers} layers, each {size} x {size} "
                f"numbers; {ANALYZE_AGAIN}"
            )
        return layers


class ScoresFile(Origin):
    """A JSON file with `layer_scores` or `layer_similarities`, and perhaps the sizes of the model's MLPs.

    Raises:
        UserError: naming the file, and the key and layer that is wrong.
    """

    counts_neurons = False

    def __init__(self, path: Path) -> None:
        missing = f"{path} does not exist; name the folder of an analysis or a scores file"
        record = read_json_object(path, FORM, missing=missing, wrong='has no list "layer_scores"')
        keys = [key for key in ("layer_scores", "layer_similarities") if key in record]
        for key in keys:
            if not isinstance(record[key], list) or not record[key]:
                raise UserError(f"{path}: {key} must be a list with one number per decoder layer")
            for layer, number in enumerate(record[key]):
                if not is_number(number):
                    raise UserError(f"{path}: the entry of {key} for layer {layer} is {shown(number)}, not a number")
        if not keys:
            raise UserError(f'{path} has no list "layer_scores"; {FORM}')
        lengths = [len(record[key]) for key in keys]
        if len(set(lengths)) > 1:
            raise UserError(f"{path}: layer_scores has {lengths[0]} layers, layer_similarities {lengths[1]}")
        super().__init__(path, path, record, lengths[0])

    def remedy_for(self, key: str) -> str:
        """To add it."""
        return "add it"

    def check_languages(self, source: str | None, targets: Sequence[str]) -> None:
        """Any languages will do: they are recorded as given."""

    def layer_scores(self) -> list[float]:
        """The scores; raises `UserError` if the file has only similarities."""
        return self._list("layer_scores")

    def similarities(self, source: str | None, targets: Sequence[str]) -> list[float]:
        """The similarities; raises `UserError` if the file has only scores."""
        return self._list("layer_similarities")

    def _list(self, key: str) -> list[float]:
        if key not in self.record:
            raise UserError(f'{self.path} has no list "{key}"; {FORM}')
        return [float(number) for number in self.record[key]]


def read_origin(path: Path) -> AnalysisFolder | ScoresFile:
    """What is in a folder or a file; raises `UserError` if it is neither an analysis nor scores."""
    return AnalysisFolder(path) if path.is_dir() else ScoresFile(path)


def layer_similarity(cosines: Sequence[Sequence[float]], old: Sequence[int], new: Sequence[int]) -> float:
    """Similarity of languages in one layer: the mean of two means, over new-new and over new-old pairs.

    Args:
        cosines: (languages, languages), the mean cosine between MLP inputs of tokens of two languages.
        old: Rows of the languages that the model knows, at least one.
        new: Rows of the languages that it shall learn, at least one. With one there are no new-new pairs, and the
            similarity is the mean over new-old pairs alone.
    """
    new_old = fmean([cosines[mine][other] for mine in new for other in old])
    pairs = list(combinations(new, 2))
    return (fmean([cosines[mine][other] for mine, other in pairs]) + new_old) / 2 if pairs else new_old


def dissimilarities(similarities: Sequence[float]) -> list[Fraction]:
    """1 / sim_l of every layer, exactly for the decimal number that each similarity is written as.

    Raises:
        UserError: naming the layer whose similarity is no positive mean of cosines.
    """
    for layer, similarity in enumerate(similarities):
        if not 0 < similarity <= LARGEST_COSINE:
            raise UserError(
                f"the similarity of layer {layer} is {similarity}; experts in proportion to 1 / similarity need a mean "
                "cosine above 0 and up to 1 in every layer; use another --strategy for this model"
            )
    return [1 / Fraction(str(float(similarity))) for similarity in similarities]


def read_shapes(path: object, record: dict[str, Any], num_layers: int) -> BlockShapes | None:
    """The shapes that a JSON object names as `hidden_size` and `mlp_parameters`; None if it lacks one.

    Raises:
        UserError: naming `path` and the key that is wrong.
    """
    hidden_size, mlp_parameters = record.get("hidden_size"), record.get("mlp_parameters")
    if hidden_size is None or mlp_parameters is None:
        return None
    if not is_count(hidden_size):
        raise UserError(f"{path}: hidden_size is {shown(hidden_size)}; it must be a whole number, 1 or more")
    of_layers = {
        "mlp_parameters": "parameters of each layer's MLP",
        "mlp_widths": "inputs and outputs of each layer's MLP",
        "mlp_ranks": "least input or output of each layer's MLP",
        "attention_widths": "inputs and outputs of each layer's attention",
        "attention_ranks": "least input or output of each layer's attention",
    }
    given = {key: record[key] for key in of_layers if record.get(key) is not None}
    for key, values in given.items():
        if not isinstance(values, list) or not list_of(is_count)(values):
            raise UserError(f"{path}: {key} must be a list of whole numbers, the {of_layers[key]}")
        if len(values) != num_layers:
            raise UserError(f"{path}: {key} has {len(values)} entries for {num_layers} layers")
    return BlockShapes(hidden_size, **given)
