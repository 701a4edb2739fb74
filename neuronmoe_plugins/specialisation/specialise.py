"""From an extended model and one corpus per language to what each of its experts specialises in."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.models import ADAPTER
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.analyze import analyze
from neuronmoe_plugins.neurons.loading import describe_sources
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION, Neuron
from neuronmoe_plugins.neurons.options import IN_ATTENTION, AnalyzeOptions, SpecialiseOptions
from neuronmoe_plugins.neurons.processes import WorkingFolder
from neuronmoe_plugins.neurons.sentences import TokenizedSentences, prepare_sentences
from neuronmoe_plugins.reading import read_json_object
from neuronmoe_plugins.specialisation.specialisation import (
    BASE,
    DRIFT,
    EXTENDED,
    RECORD,
    SCORES,
    LayerDrift,
    Specialisation,
)


def specialise(options: SpecialiseOptions, progress: bool = False) -> Specialisation:
    """Measure each expert's language-specific neurons and the routing, and write both to `options.output`.

    The model runs once over all sentences. Interrupted while activations go to a file, the same call goes on from where
    it was. Writes `specialisation.parquet`, `specialisation.json`, and pictures; earlier ones there are replaced only
    once the new ones are complete.

    Raises:
        UserError: for bad input; earlier results are left as they are.
    """
    working = WorkingFolder(options.output)
    with working.kept_if_interrupted(progress):
        sentences, corpora = _prepare(options, working)
        # Here, and not above, so that bad input is answered before torch and matplotlib have been imported.
        from neuronmoe_plugins.specialisation.display import save_figures
        from neuronmoe_plugins.specialisation.expert_scores import score_mixtures

        # The drift is of an earlier adapter, perhaps; this one's comes after.
        with working.new_output(last=RECORD, outdated=[DRIFT]) as folder:
            specialisation = score_mixtures(options, sentences, working.path, folder / SCORES, progress)
            specialisation.settings.update(corpora)
            specialisation.save(folder)
            save_figures(folder, specialisation)
    return specialisation


def _prepare(options: SpecialiseOptions, working: WorkingFolder) -> tuple[TokenizedSentences, dict[str, Any]]:
    """Sample and tokenise the corpora, and keep or make the working folder."""
    require_mixture("--adapter", options.adapter)
    sentences, description = prepare_sentences(options.analysis(), AVERAGE_PRECISION)
    sources = describe_sources(options.model, options.adapter)
    machine = {"command": "specialise", "device": options.device, "dtype": options.dtype}
    working.prepare({**options.settings(), **machine, **sources, **sentences.identity()})
    return sentences, json.loads(json.dumps(description))  # as it is read again: lists, not tuples


def require_mixture(flag: str, adapter: str, in_attention: bool = False) -> None:
    """Refuse an adapter of another method before the model is loaded.

    Args:
        flag: What names the adapter.
        adapter: Folder or hub name.
        in_attention: Whether experts may be in attention.

    Raises:
        UserError: naming the option and the adapter.
    """
    path = Path(adapter) / ADAPTER[0]
    config = read_json_object(path, "name the folder of an adapter") if path.is_file() else {"peft_type": "MOE"}
    if config.get("peft_type") != "MOE":
        raise UserError(f"{flag} has no mixture of experts; name one of the method moe, not {adapter}")
    if not in_attention and config.get("targets", "mlp") != "mlp":
        raise UserError(f"{flag} {adapter} {IN_ATTENTION}")


def measure_drift(options: AnalyzeOptions, progress: bool = False) -> list[LayerDrift]:
    """Analyse the model without and with its adapter on the same sentences, as `neuronmoe analyze` does.

    Writes both analyses, `base_analysis` and `extended_analysis`, and `drift.json` into `options.output`.

    Args:
        options: Of the extended model.
        progress: Show progress bars on standard error.

    Raises:
        UserError: for bad input.
    """
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    base = analyze(replace(options, adapter=None, output=folder / BASE), progress)
    extended = analyze(replace(options, output=folder / EXTENDED), progress)
    rows = compare_neurons(base, extended)
    write_json(folder / DRIFT, [asdict(row) for row in rows])
    return rows


def compare_neurons(base: Analysis, extended: Analysis) -> list[LayerDrift]:
    """The neurons of two analyses of the same languages, per layer and language."""
    before, after = _by_place(base.neurons), _by_place(extended.neurons)
    return [
        LayerDrift(layer, language, len(old), len(new), len(old & new))
        for layer in range(base.summary["num_layers"])
        for language in base.summary["languages"]
        for old, new in [(before[layer, language], after[layer, language])]
    ]


def _by_place(neurons: Sequence[Neuron]) -> dict[tuple[int, str], set[tuple[str, int]]]:
    found: dict[tuple[int, str], set[tuple[str, int]]] = defaultdict(set)
    for neuron in neurons:
        found[neuron.layer, neuron.language].add((neuron.module, neuron.unit))
    return found
