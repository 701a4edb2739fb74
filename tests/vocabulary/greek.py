"""Texts of an old and a new language, and a small model with a real byte-level BPE that has learnt the old one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_tokenizers import trained_tokenizer
from neuronmoe_plugins.vocabulary.extend import Extended, extend_vocabulary
from neuronmoe_plugins.vocabulary.options import VocabularyOptions
from tiny_llama import save_tiny_llama

GREEK = (
    *(
        "και",
        "το",
        "να",
        "της",
        "του",
        "για",
        "με",
        "από",
        "στην",
        "που",
        "είναι",
        "δεν",
        "θα",
        "στο",
        "ένα",
        "άνθρωπος",
    ),
    *("δικαίωμα", "ελευθερία", "παράδειγμα", "αρχείο", "έγγραφο", "πίνακας", "κελί", "γραμμή", "στήλη", "μορφοποίηση"),
    *("επιλογή", "διάλογος", "εντολή", "μενού", "προβολή", "επεξεργασία"),
)
ENGLISH = Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8").split("\n\n")


def greek_texts(sentences: int, seed: int = 0) -> list[str]:
    """Made-up sentences."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(GREEK, k=chance.randint(5, 12))) + "." for _ in range(sentences)]


def save_base(folder: Path, tied: bool = False, tokenizer: Any = None, rows: int = 0) -> Path:
    """A tiny model with a tokenizer of 400 tokens that was trained on English, unless another one is given."""
    tokenizer = tokenizer or trained_tokenizer(ENGLISH, 400)
    folder.mkdir(exist_ok=True)
    save_tiny_llama(folder, rows or len(tokenizer), tied=tied)
    tokenizer.save_pretrained(folder)
    return folder


def save_texts(file: Path, texts: Sequence[str]) -> Path:
    """A line each."""
    file.write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8")
    return file


def extend(folder: Path, base: Path, tokens: int = 60, **more: Any) -> Extended:
    """Extend a base model by Greek tokens; `folder` gets the texts, and the model as `extended`."""
    from neuronmoe_plugins.corpora import CorpusSpec

    learnt = save_texts(folder / "el.txt", more.pop("learnt", greek_texts(200)))
    kept = save_texts(folder / "en.txt", more.pop("kept", ENGLISH))
    corpora, keep = (CorpusSpec("el", learnt),), (CorpusSpec("en", kept),)
    options = VocabularyOptions(str(base), folder / "extended", tokens, corpora, keep, **more)
    return extend_vocabulary(options)
