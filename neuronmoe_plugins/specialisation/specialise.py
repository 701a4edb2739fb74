"""From an extended model and one corpus per language to what each of its experts specialises in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import digest
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.options import SpecialiseOptions
from neuronmoe_plugins.neurons.preparation import prepare_sentences
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.working_folder import WorkingFolder, describe_files
from neuronmoe_plugins.specialisation.drift import DRIFT
from neuronmoe_plugins.specialisation.results import RECORD, SCORES, Specialisation


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
        from neuronmoe_plugins.specialisation.measuring import measure

        staging = working.path / "output"
        staging.mkdir(exist_ok=True)
        specialisation = measure(options, sentences, working.path, staging / SCORES, progress)
        specialisation.settings.update(corpora)
        _write(options.output, staging, specialisation)
    return specialisation


def _prepare(options: SpecialiseOptions, working: WorkingFolder) -> tuple[TokenizedSentences, dict[str, Any]]:
    """Sample and tokenise the corpora, and keep or make the working folder."""
    sentences, description = prepare_sentences(options.analysis(), AVERAGE_PRECISION)
    from neuronmoe_plugins.neurons.loading import adapter_commit, model_commit

    working.prepare(
        {
            **options.settings(),
            "command": "specialise",
            "device": options.device,
            "dtype": options.dtype,
            "model": [options.model, describe_files(options.model), model_commit(options.model)],
            "adapter": [options.adapter, describe_files(options.adapter), adapter_commit(options.adapter)],
            "sentences": digest(sentences.token_ids),
            "padding_side": sentences.padding_side,
        }
    )
    described = {name: description[name] for name in ("corpora", "shared_sentences")}
    return sentences, json.loads(json.dumps(described))  # as it is read again: lists, not tuples


def _write(output: Path, staging: Path, specialisation: Specialisation) -> None:
    from neuronmoe_plugins.specialisation.figures import save_figures

    specialisation.save(staging)
    save_figures(staging, specialisation)
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Of an earlier adapter, perhaps; this one's comes after.
        (output / DRIFT).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == RECORD):
            shutil.move(path, output / path.name)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
