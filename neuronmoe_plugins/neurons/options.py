"""What `neuronmoe analyze` and `neuronmoe specialise` are told, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import writable_folder
from neuronmoe_plugins.options import OptionCheck, at_least_one, check_options, one_of, option, typed

if TYPE_CHECKING:
    from neuronmoe_plugins.corpora import CorpusSpec
    from neuronmoe_plugins.neurons.metrics import NeuronMetric

Component = Literal["attention", "mlp"]
"""The two parts of a decoder layer that have neurons."""
COMPONENTS: tuple[Component, ...] = get_args(Component)
MEASURES = {"gradient": False, "spectral": False, "parameter-deviation": True, "knock-out": True}
"""What can be measured of each layer beside its neurons, and whether it is of a trained adapter's experts.

Strategies of `neuronmoe allocate` have these names.
"""
ON_BLOCKS = ("gradient", "knock-out")
BLOCK_TOKENS = 512
"""Tokens of a block, unless the model has fewer positions."""
# By the first part of a projection's name inside its layer, as in self_attn.q_proj, attention.dense, mlp.c_fc, fc1.
COMPONENT_NAMES: dict[Component, re.Pattern[str]] = {
    "attention": re.compile("attn|attention"),
    "mlp": re.compile("mlp|feed_forward|ffn|^fc"),
}


# What is said of an adapter whose experts are not in MLPs alone.
IN_ATTENTION = "has experts in attention (targets), and only those of MLPs can be looked into"


def component_of(name: str) -> Component | None:
    """The component of a projection with this name inside its decoder layer."""
    first = name.split(".")[0].lower()
    return next((component for component, pattern in COMPONENT_NAMES.items() if pattern.search(first)), None)


def _must(passes: Callable[[float], bool], rule: str) -> OptionCheck:
    def check(flag: str, value: float) -> None:
        if not passes(value):
            raise UserError(f"{flag} is {value}; {rule}")

    return check


_gigabytes = _must(lambda value: value >= 0, "it must be a number of gigabytes, 0 or more")
_average_precision = _must(lambda value: 0 < value <= 1, "an average precision is above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """How sentences are sampled and run through a model; None leaves the choice to what measures."""

    take_memory: ClassVar[str] = "--batch-size, --max-tokens or --memory-limit"

    samples: int | None = option(
        "Sentences per language.", None, shown="500, or what --data has if it is less", check=at_least_one
    )
    text_field: str | None = option("Field of the texts.", None, shown="text")
    split_sentences: bool = option("Split texts into sentences; LANGUAGE is an ISO 639-1 code.", False)
    max_tokens: int = option("Tokens of a sentence; longer ones are cut.", 256, check=at_least_one)
    batch_size: int = option("Sentences per forward pass.", 16, check=at_least_one)
    seed: int | None = option("Seed of the sampling.", None, shown="42")
    dtype: str = option("float32, bfloat16 or float16.", "float32", check=one_of("float32", "bfloat16", "float16"))
    device: str | None = option("As in cpu, cuda:0, or auto for all.", None, shown="CUDA if there is any")
    memory_limit: float | None = option(
        "Gigabytes of activations kept in memory; more go to a file, from which a stopped run goes on.",
        None,
        shown="half of the free CUDA memory; 0 on a CPU",
        check=_gigabytes,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def sampling(self) -> dict[str, Any]:
        """How corpora are sampled: the keywords of `sample_corpus`."""
        # What was drawn is documents, each of which may be split into many sentences.
        corpora = () if self.split_sentences else getattr(self, "corpora", ())
        drawn = [spec.drawn for spec in corpora if spec.drawn]
        return {
            "samples": min([500, *drawn]) if self.samples is None else self.samples,
            "seed": 42 if self.seed is None else self.seed,
            "text_field": self.text_field or "text",
            "split_sentences": self.split_sentences,
        }


@dataclass(frozen=True)
class AnalyzeOptions(MeasuringOptions):
    """The options of an analysis: of a model, perhaps with an adapter, on one corpus per language or on concepts.

    Raises:
        UserError: for a value that cannot be used.
    """

    model: str = option("Folder or hub name of the base model, a causal language model.")
    output: Path = option("Folder for neurons.parquet, summary.json and neurons.png.", check=writable_folder)
    corpora: Sequence[CorpusSpec] = option(
        "Once per language. SOURCE is a .txt, .jsonl (also .gz) or .parquet file, a folder of such, or "
        "hub:OWNER/NAME[:CONFIG][@SPLIT[[:ROWS]]].",
        (),
        flag="corpus",
        value="LANGUAGE=SOURCE",
    )
    concepts: Path | None = option("Instead: a folder of the published code's sentences.", None)
    adapter: str | None = option("Folder or hub name of a PEFT adapter for the model.", None)
    metric: str = option("Neuron metric: ap, attribution, lape or a plugin's.", "ap", after="split_sentences")
    top_n: int | None = option(
        "At most so many neurons per language.", None, shown="1000, lape all", check=at_least_one
    )
    min_score: float | None = option(
        "Only neurons that score above this.",
        None,
        shown="0.5, lape none",
        check=_must(math.isfinite, "it must be a number"),
    )
    share: float | None = option(
        "Share of all neurons from which it chooses.",
        None,
        shown="lape 0.01",
        check=_must(lambda value: 0 < value <= 1, "a share is above 0 and at most 1"),
    )
    chat_template: bool = option(
        "Sentences are a user's message in the model's chat template; their own tokens count.", False
    )
    components: Sequence[str] | None = option(
        "Projections of attention, mlp or attention,mlp.",
        None,
        shown="both",
        split=True,
        check=one_of(*COMPONENTS),
    )
    pooling: str | None = option(
        "Over a sentence's tokens: mean or max.", None, shown="mean", check=one_of("mean", "max")
    )
    neuron_identity: str = option(
        "Neurons of a layer are counted by module and unit, or as published by unit.",
        "module",
        check=one_of("module", "unit"),
    )

    measures: Sequence[str] | None = option(
        "Also of each layer, for `neuronmoe allocate`: gradient,spectral of the MLPs, or of the adapter's experts "
        "parameter-deviation,knock-out.",
        None,
        flag="measure",
        shown="none",
        split=True,
        check=one_of(*MEASURES),
    )
    blocks: int | None = option(
        f"For --measure gradient or knock-out: blocks of {BLOCK_TOKENS} tokens of each language.",
        None,
        shown="6",
        check=at_least_one,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None and not set(self.measures or ()) & set(ON_BLOCKS):
            raise UserError(f"--blocks has no effect without --measure {' or '.join(ON_BLOCKS)}; leave it out")
        for name in self.measures or ():
            if MEASURES[name] and self.adapter is None:
                raise UserError(f"--measure {name} is of trained experts; pass --adapter")
            if not MEASURES[name] and self.adapter is not None:
                raise UserError(f"--measure {name} is of a model's own MLPs; leave out --adapter")
        if self.concepts is None and not self.corpora:
            raise UserError(
                "nothing to analyse: pass --corpus LANGUAGE=SOURCE for each language, --data DIR or --concepts DIR"
            )
        for name in ("corpora", "samples", "seed", "text_field", "split_sentences"):
            if self.concepts is not None and getattr(self, name) not in ((), None, False):
                flag = "--corpus" if name == "corpora" else typed(name)
                raise UserError(f"{flag} has no effect with --concepts, whose sentences are used as they are")

    def resolved(self, metric: NeuronMetric) -> dict[str, Any]:
        """The options on which the neurons depend, with the metric's defaults; JSON values.

        Raises:
            UserError: for an option that has no effect with this metric.
        """
        observes_projections = metric.observes != "activation functions"
        has_effect = {"components": observes_projections, "pooling": observes_projections, "share": metric.share}
        for name, effect in has_effect.items():
            if getattr(self, name) is not None and not effect:
                raise UserError(f"{typed(name)} has no effect with --metric {self.metric}; leave it out")
        return {
            **(self.sampling() if self.concepts is None else {"concepts": str(self.concepts)}),
            "top_n": metric.top_n if self.top_n is None else self.top_n,
            "min_score": metric.min_score if self.min_score is None else self.min_score,
            "share": metric.share if self.share is None else self.share,
            "max_tokens": self.max_tokens,
            "chat_template": self.chat_template,
            "batch_size": self.batch_size,
            "metric": self.metric,
            "observes": metric.observes,
            "components": sorted(set(self.components or COMPONENTS)) if observes_projections else ["mlp"],
            "pooling": (self.pooling or "mean") if observes_projections else "active tokens",
            "neuron_identity": self.neuron_identity,
        }


@dataclass(frozen=True)
class SpecialiseOptions(MeasuringOptions):
    """The options of a look into each expert: of a mixture, on one corpus per language, of two languages or more.

    Raises:
        UserError: for a value that cannot be used.
    """

    model: str = option("Folder or hub name of the base model.")
    adapter: str = option("Folder or hub name of a moe adapter for the model.")
    output: Path = option("Folder for specialisation.parquet, .json and the pictures.", check=writable_folder)
    corpora: Sequence[CorpusSpec] = option(
        "Once per language, as for `neuronmoe analyze`.", (), flag="corpus", value="LANGUAGE=SOURCE"
    )
    threshold: float = option("Average precision from which a neuron is specific.", 0.9, check=_average_precision)
    """At least this, where an analysis asks for more than its --min-score (paper, section 6.1)."""
    missing: str = option(
        "Sentences without a token at an expert: drop, or zero (activation 0).",
        "drop",
        check=one_of("drop", "zero"),
    )
    """Left out (drop), or as one of activation 0 (zero)."""
    min_sentences: int = option("Sentences with a token at an expert; else not measured.", 10, check=at_least_one)
    """So many of a language, and of others."""
    # In other words than for an analysis.
    split_sentences: bool = option("Split texts into sentences; LANGUAGE is an ISO 639-1 code.", False, kw_only=True)
    device: str | None = option("As in cpu, cuda:0, or auto for all.", None, shown="CUDA if there is any", kw_only=True)
    memory_limit: float | None = option(
        "Gigabytes of activations kept in memory; more go to a file, from which a stopped run goes on.",
        None,
        shown="half of the free CUDA memory; 0 on a CPU",
        check=_gigabytes,
        kw_only=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.corpora) < 2:
            raise UserError(
                "pass --corpus LANGUAGE=SOURCE for two languages or more, or --data DIR: an expert is compared on them"
            )
        self.analysis()

    def analysis(self) -> AnalyzeOptions:
        """The same for an analysis, which reads the corpora and loads the model."""
        shared = {each.name for each in fields(self)} & {each.name for each in fields(AnalyzeOptions)}
        return AnalyzeOptions(**{name: getattr(self, name) for name in shared})

    def settings(self) -> dict[str, Any]:
        """What the activations depend on; JSON values."""
        return {**self.sampling(), "max_tokens": self.max_tokens, "batch_size": self.batch_size}
