"""From a model and one corpus per language to its language-specific neurons: `neuronmoe analyze`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from neuronmoe_plugins.files import writing
from neuronmoe_plugins.neurons.analysis import Analysis, build_summary, write_analysis
from neuronmoe_plugins.neurons.loading import default_device, describe_sources
from neuronmoe_plugins.neurons.metrics import NeuronMetric, as_metric, metrics
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.neurons.processes import Processes, WorkingFolder
from neuronmoe_plugins.neurons.sentences import TokenizedSentences, prepare_sentences, reading_versions
from neuronmoe_plugins.plugins import choose


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
    with working.kept_if_interrupted(progress) if processes.is_first else nullcontext():
        description = _prepare(options, settings, metric, working) if processes.is_first else {}
        processes.wait_for_all()
        sentences = TokenizedSentences.load(working.path / "sentences.json")
        # The first process may fail from here on, and remove the folder.
        processes.wait_for_all()
        # Here, and not above, so that bad input is answered before torch has been imported.
        from neuronmoe_plugins.neurons.scoring import score_neurons

        findings = score_neurons(options, settings, metric, sentences, working.path, processes, progress)
        if processes.is_first:
            record = {**build_summary(sentences.languages, settings, findings), **description}
            record["versions"] |= reading_versions(options)
            with working.new_output(last="summary.json") as folder:
                write_analysis(folder, Analysis(findings.neurons, record))
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
    sources = describe_sources(options.model, options.adapter)
    import torch

    device = options.device or default_device()
    gpu = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None
    # What rounds differently.
    machine = {"device": device, "gpu": gpu, "threads": torch.get_num_threads(), "dtype": options.dtype}
    working.prepare({**settings, **machine, **sources, **sentences.identity()})
    with writing(f"--output {options.output}"):
        sentences.save(working.path / "sentences.json")
    return description
