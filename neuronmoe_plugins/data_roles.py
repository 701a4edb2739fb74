"""What a folder of `neuronmoe data` gives the other commands: corpora to analyse, data sets to train on."""

from __future__ import annotations

from pathlib import Path

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.corpora.sources import CorpusSpec
from neuronmoe_plugins.data.manifest import Manifest, ManifestDataset, read_manifest
from neuronmoe_plugins.errors import UserError

AGAIN = "to its specification and run `neuronmoe data` again"


def analysis_corpora(folder: Path) -> tuple[CorpusSpec, ...]:
    """The corpora of an analysis: the data sets of role analysis, one per language.

    Raises:
        UserError: if the folder cannot be used, has two such data sets for a language, or not two languages.
    """
    manifest = read_manifest(folder)
    chosen: dict[str, ManifestDataset] = {}
    for dataset in manifest.with_role("analysis"):
        earlier = chosen.setdefault(dataset.language, dataset)
        if earlier is not dataset:
            raise UserError(
                f"{manifest.path}: {earlier.name} and {dataset.name} are both of role analysis and language "
                f"{dataset.language}; keep one in its specification and run `neuronmoe data` again"
            )
    if not chosen:
        raise UserError(f"{manifest.path} has no data set of role analysis; add one for each language {AGAIN}")
    if len(chosen) < 2:
        raise UserError(
            f"{manifest.path} has a data set of role analysis for {next(iter(chosen))} alone, and specificity needs at "
            f"least two languages; add one for another {AGAIN}"
        )
    return tuple(
        CorpusSpec(language, dataset.path, f"--data, data set {dataset.name}: ") for language, dataset in chosen.items()
    )


def training_datasets(folder: Path, allocation: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The data sets that a recipe trains on.

    Args:
        folder: What `neuronmoe data` wrote.
        allocation: The allocation.yaml whose targets are to be learnt; all of the folder's if it names none.

    Returns:
        The names of the data sets to learn, and of those of the languages to keep.

    Raises:
        UserError: if a file cannot be used, a target has no data set to learn, or there are none to keep.
    """
    manifest = read_manifest(folder)
    wanted = Allocation.load(allocation).targets
    targets = manifest.with_role("target")
    _require_targets(manifest, allocation, wanted)
    replays = tuple(dataset.name for dataset in manifest.with_role("replay"))
    if not replays:
        raise UserError(
            f"{manifest.path} has no data set of role replay, and stage 2 needs the languages to keep; add one {AGAIN}"
        )
    return tuple(dataset.name for dataset in targets if not wanted or dataset.language in wanted), replays


def _require_targets(manifest: Manifest, allocation: Path, wanted: list[str]) -> None:
    languages = list(dict.fromkeys(dataset.language for dataset in manifest.with_role("target")))
    if not languages:
        raise UserError(
            f"{manifest.path} has no data set of role target, so there is nothing to learn; add one {AGAIN}"
        )
    missing = [language for language in wanted if language not in languages]
    if missing:
        raise UserError(
            f"{manifest.path} has no data set of role target for {', '.join(missing)}, which {allocation} is for (it "
            f"has {', '.join(languages)}); add one {AGAIN}"
        )
