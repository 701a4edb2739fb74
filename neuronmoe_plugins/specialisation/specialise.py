"""From an extended model and one corpus per language to what each of its experts specialises in."""

from __future__ import annotations

import json
from typing import Any

from neuronmoe_plugins.neurons.loading import describe_sources
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.options import SpecialiseOptions
from neuronmoe_plugins.neurons.processes import WorkingFolder
from neuronmoe_plugins.neurons.sentences import TokenizedSentences, prepare_sentences
from neuronmoe_plugins.specialisation.drift import DRIFT
from neuronmoe_plugins.specialisation.specialisation import RECORD, SCORES, Specialisation


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
        from neuronmoe_plugins.specialisation.expert_scores import score_mixtures
        from neuronmoe_plugins.specialisation.figures import save_figures

        # The drift is of an earlier adapter, perhaps; this one's comes after.
        with working.new_output(last=RECORD, outdated=[DRIFT]) as folder:
            specialisation = score_mixtures(options, sentences, working.path, folder / SCORES, progress)
            specialisation.settings.update(corpora)
            specialisation.save(folder)
            save_figures(folder, specialisation)
    return specialisation


def _prepare(options: SpecialiseOptions, working: WorkingFolder) -> tuple[TokenizedSentences, dict[str, Any]]:
    """Sample and tokenise the corpora, and keep or make the working folder."""
    sentences, description = prepare_sentences(options.analysis(), AVERAGE_PRECISION)
    sources = describe_sources(options.model, options.adapter)
    machine = {"command": "specialise", "device": options.device, "dtype": options.dtype}
    working.prepare({**options.settings(), **machine, **sources, **sentences.identity()})
    described = {name: description[name] for name in ("corpora", "shared_sentences")}
    return sentences, json.loads(json.dumps(described))  # as it is read again: lists, not tuples
