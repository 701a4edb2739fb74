"""From a model and one corpus per language to its language-specific neurons: `neuronmoe analyze`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import digest
from neuronmoe_plugins.neurons import summary
from neuronmoe_plugins.neurons.analysis import OUTPUT_FILES, Analysis, write_analysis
from neuronmoe_plugins.neurons.metrics import NeuronMetric, as_metric, metrics
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.neurons.preparation import prepare_sentences
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.working_folder import WorkingFolder, describe_files
from neuronmoe_plugins.plugins import choose

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.measure import Measured


def analyze(options: AnalyzeOptions, progress: bool = False) -> Analysis:
    """Find the neurons specific to each corpus's language and write them to `options.output`.

    Under torchrun all processes of a machine share the work; the results are those of one process with as many threads.
    Interrupted while activations go to a file, the same call goes on from where it was. Writes `neurons.parquet`,
    `neurons.png` and `summary.json`; an earlier analysis there is replaced only once the new one is complete.

    Raises:
        UserError: for bad input; an earlier analysis is left as it is.
    """
    metric = as_metric(choose("metric", options.metric, metrics()))
    settings = options.resolved(metric)
    processes = Processes.from_environment()
    working = WorkingFolder(options.output)
    with _kept_if_interrupted(working, processes, progress):
        description: dict[str, Any] = {}
        if processes.is_first:
            description = _prepare(options, settings, metric, working)
        processes.wait_for_all()
        sentences = TokenizedSentences.load(working.path / "sentences.json")
        # The first process may fail from here on, and remove the folder.
        processes.wait_for_all()
        # Here, and not above, so that bad input is answered before torch has been imported.
        from neuronmoe_plugins.neurons.measure import measure

        measured = measure(options, settings, metric, sentences, working.path, processes, progress)
        if processes.is_first:
            _write(options, settings, description, measured, working)
        processes.wait_for_all()
    return Analysis.load(options.output)


def _prepare(
    options: AnalyzeOptions, settings: dict[str, Any], metric: NeuronMetric, working: WorkingFolder
) -> dict[str, Any]:
    """Sample and tokenise the corpora, and put them into the working folder.

    Returns:
        What the summary says about the corpora.
    """
    sentences, description = prepare_sentences(options, metric)
    from neuronmoe_plugins.neurons.loading import adapter_commit, model_commit

    working.prepare(
        {
            **settings,
            **_describe_machine(options),
            "dtype": options.dtype,
            "model": [options.model, describe_files(options.model), model_commit(options.model)],
            "adapter": options.adapter
            and [options.adapter, describe_files(options.adapter), adapter_commit(options.adapter)],
            "sentences": digest(sentences.token_ids),
            "padding_side": sentences.padding_side,
        }
    )
    sentences.save(working.path / "sentences.json")
    return description


def _describe_machine(options: AnalyzeOptions) -> dict[str, Any]:
    """What rounds differently: the device and the number of threads."""
    import torch

    from neuronmoe_plugins.neurons.loading import default_device

    device = options.device or default_device()
    gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None
    return {"device": device, "gpu": gpu, "threads": torch.get_num_threads()}


def _write(
    options: AnalyzeOptions,
    settings: dict[str, Any],
    description: dict[str, Any],
    measured: Measured,
    working: WorkingFolder,
) -> None:
    languages = [entry["language"] for entry in description["corpora"]]
    record = {**summary.build(languages, settings, measured), **description}
    record["versions"] |= record.pop("reading_versions")
    staging = working.path / "output"
    staging.mkdir(exist_ok=True)
    write_analysis(staging, Analysis(measured.neurons, record))
    try:
        options.output.mkdir(exist_ok=True)
        for name in OUTPUT_FILES:
            (staging / name).replace(options.output / name)
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be written: {error.strerror}") from error


@contextmanager
def _kept_if_interrupted(working: WorkingFolder, processes: Processes, progress: bool) -> Iterator[None]:
    """Remove the working folder at the end, but not if the analysis could go on from it."""
    if not processes.is_first:
        yield
        return
    with working.kept_if_interrupted(progress):
        yield
