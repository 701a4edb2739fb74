"""Layer scores from the folder of an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.allocation.checks import is_number, list_of_length, shown
from neuronmoe_plugins.allocation.origin import Origin
from neuronmoe_plugins.allocation.similarity import layer_similarity
from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.analysis import NeuronIdentity

ANALYZE_AGAIN = "run `neuronmoe analyze` again"


class AnalysisFolder(Origin):
    """The folder of an analysis; raises `UserError` if it is none, incomplete, or does not fit together."""

    counts_neurons = True

    def __init__(self, folder: Path) -> None:
        from neuronmoe_plugins.neurons.analysis import Analysis

        analysis = Analysis.load(folder)
        self.neurons = analysis.neurons
        super().__init__(folder, folder / "summary.json", analysis.summary, analysis.summary["num_layers"])

    def remedy_for(self, key: str) -> str:
        """To analyze again, unless the analysis looked for MLPs and found none that it knows."""
        unknown_mlps = key.startswith("mlp_") and key in self.record
        return "the model's MLPs are of no known kind" if unknown_mlps else ANALYZE_AGAIN

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
