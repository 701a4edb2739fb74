"""What `neuronmoe prune` is told, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_folder
from neuronmoe_plugins.neurons.options import AnalyzeOptions, MeasuringOptions
from neuronmoe_plugins.options import at_least_one, option

if TYPE_CHECKING:
    from neuronmoe_plugins.corpora import CorpusSpec

SAMPLES = 100


def _share(flag: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{flag} is {value}; it must be a share of the loss, 0 or more, such as 0.01")


@dataclass(frozen=True)
class PruneOptions(MeasuringOptions):
    """The options of a pruning: of a mixture, on texts of the languages that it learned and of those to keep.

    Raises:
        UserError: for a value that cannot be used, or if there is no text of a new or of an old language.
    """

    take_memory: ClassVar[str] = "--batch-size or --max-tokens"

    adapter: str = option("Folder or hub name of a moe adapter.", metavar="ADAPTER")
    model: str = option("Folder or hub name of its base model.")
    output: Path = option("Folder for the pruned adapter and pruning.json.", check=new_folder)
    corpora: Sequence[CorpusSpec] = option(
        "Once per language, as for `neuronmoe analyze`.", (), flag="corpus", value="LANGUAGE=SOURCE"
    )
    target: Sequence[str] | None = option(
        "Of these the languages that the adapter learned.", None, shown="those of role target in --data", split=True
    )
    below: float = option("By how much of itself the loss on a language may rise, in all.", 0.01, check=_share)
    samples: int | None = option(
        "Texts per language.", None, shown="100, or what --data has if it is less", check=at_least_one, kw_only=True
    )
    split_sentences: bool = option("Split texts into sentences; LANGUAGE is an ISO 639-1 code.", False, kw_only=True)
    device: str | None = option("As in cpu, cuda:0, or auto for all.", None, shown="CUDA if there is any", kw_only=True)
    # No option: no activations are kept.
    memory_limit: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.corpora:
            raise UserError(
                "nothing to measure the loss on: pass --data DIR, or --corpus LANGUAGE=SOURCE for each language"
            )
        languages = [spec.language for spec in self.corpora]
        for language in self.target or ():
            if language not in languages:
                raise UserError(f"--target {language} has no texts; there are those of {', '.join(languages)}")
        if self.target is None and all(spec.is_learned is None for spec in self.corpora):
            raise UserError(f"pass --target: which of the languages {', '.join(languages)} the adapter learned")
        for kind, number in (("the adapter learned", len(self.new_languages)), ("it has to keep", self.num_old)):
            if not number:
                raise UserError(
                    f"there are texts of {', '.join(languages)}, but none of a language that {kind}, whose loss might "
                    "rise unseen: add a --corpus of one, or, for --data, a data set of role held-out or analysis"
                )
        self.analysis()

    @property
    def new_languages(self) -> list[str]:
        """Those that the adapter learned, in the order of the corpora."""
        return [
            spec.language
            for spec in self.corpora
            if (spec.is_learned if self.target is None else spec.language in self.target)
        ]

    @property
    def num_old(self) -> int:
        """How many languages there are to keep."""
        return len(self.corpora) - len(self.new_languages)

    def analysis(self) -> AnalyzeOptions:
        """The same for an analysis, which reads the corpora and loads the model."""
        shared = {each.name for each in fields(self)} & {each.name for each in fields(AnalyzeOptions)}
        drawn = [] if self.split_sentences else [spec.drawn for spec in self.corpora if spec.drawn]
        samples = min([SAMPLES, *drawn]) if self.samples is None else self.samples
        return AnalyzeOptions(**{**{name: getattr(self, name) for name in shared}, "samples": samples})
