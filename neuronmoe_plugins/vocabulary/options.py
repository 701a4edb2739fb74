"""What `neuronmoe vocabulary` is told, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_folder
from neuronmoe_plugins.options import at_least_one, check_options, one_of, option

if TYPE_CHECKING:
    from neuronmoe_plugins.corpora import CorpusSpec

INITIALISATIONS = ("mean", "random")
LEARNT, KEPT, MEASURED = "learnt", "kept", "measured"
"""What a corpus is for."""


@dataclass(frozen=True)
class VocabularyOptions:
    """A base model, texts of the languages to learn and to keep, and how many tokens.

    Raises:
        UserError: for a value that cannot be used.
    """

    model: str = option("Folder or hub name of the base model, with a byte-level BPE tokenizer.")
    output: Path = option("Folder for the whole model with the larger vocabulary.", check=new_folder)
    tokens: int = option("New tokens.", check=at_least_one)
    corpora: Sequence[CorpusSpec] = option(
        "Once per language to learn; SOURCE as for `neuronmoe analyze`.", (), flag="corpus", value="LANGUAGE=SOURCE"
    )
    kept: Sequence[CorpusSpec] = option(
        "Once per language whose text keeps exactly its tokens.", (), flag="keep", value="LANGUAGE=SOURCE"
    )
    data: Path | None = option(
        "Instead of these two: a folder of `neuronmoe data`, whose role target is learnt, and replay kept.", None
    )
    text_field: str | None = option("Field of the texts.", None, shown="text")
    initialise: str = option(
        "New rows: mean of the pieces that a token replaces, or random.", "mean", check=one_of(*INITIALISATIONS)
    )
    seed: int | None = option("Seed of random rows.", None, shown="42")
    train_also: tuple[str, ...] = option(
        "A token that is there, whose row stage 1 is to train like new ones, as <|im_end|>; again for more.",
        (),
        value="TOKEN",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.seed is not None and self.initialise != "random":
            raise UserError(f"--seed has no effect with --initialise {self.initialise}; leave it out")
        if self.data is not None:
            for flag, value in (("--corpus", self.corpora), ("--keep", self.kept), ("--text-field", self.text_field)):
                if value:
                    raise UserError(f"--data {self.data} says what {flag} says; leave one out")
        elif not self.corpora:
            raise UserError("nothing to learn from: pass --corpus LANGUAGE=SOURCE, or --data DIR")
        elif not self.kept:
            raise UserError("no text to keep: pass --keep LANGUAGE=SOURCE of the old languages, or --data DIR")

    def texts(self) -> dict[str, Sequence[CorpusSpec]]:
        """The corpora to learn from, to keep, and to measure besides; raises `UserError` for a folder without one."""
        if self.data is None:
            return {LEARNT: self.corpora, KEPT: self.kept, MEASURED: ()}
        from neuronmoe_plugins.data.manifest import corpora_of_roles

        return corpora_of_roles(self.data, {LEARNT: "target", KEPT: "replay"}, {MEASURED: "held-out"})
