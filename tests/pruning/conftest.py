"""Adapters of every kind on a tiny model, and texts in three made-up languages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from data_folders import save_data
from neuronmoe_plugins.neurons.loading import load_model
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from pruning.adapters import KINDS
from specialisation.extending import save_adapter, tokens_of

ALPHABETS = {"en": "abcdefgh", "el": "αβγδεζηθ", "es": "ñíóabcde"}
TEXTS = 6


@pytest.fixture(scope="session")
def texts() -> dict[str, list[str]]:
    """Language -> texts of unlike length."""
    draw = random.Random(5)
    return {
        language: ["".join(draw.choices(letters, k=draw.randint(4, 30))) for _ in range(TEXTS)]
        for language, letters in ALPHABETS.items()
    }


@pytest.fixture(scope="session")
def data(texts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `neuronmoe data` writes: Greek is learned; English and Spanish are kept, Spanish with sentences alone."""
    sets = {
        "el_train": ("el", "target", ["α"]),
        "en_replay": ("en", "replay", ["a"]),
        "en_test": ("en", "held-out", texts["en"]),
        "el_test": ("el", "held-out", texts["el"]),
        "el_analysis": ("el", "analysis", ["β"]),
        "es_analysis": ("es", "analysis", texts["es"]),
    }
    return save_data(tmp_path_factory.mktemp("prune") / "data", sets)


@pytest.fixture(scope="session")
def sentences(tiny_model_dir: Path, texts: dict[str, list[str]]) -> TokenizedSentences:
    """The texts as the command has them."""
    flat = [text for own in texts.values() for text in own]
    labels = [language for language, own in texts.items() for _ in own]
    membership = [[int(label == language) for label in labels] for language in texts]
    return TokenizedSentences(list(texts), membership, flat, tokens_of(tiny_model_dir, flat), "right")


@pytest.fixture(scope="session")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a folder with an adapter as training would leave it."""
    folder = tmp_path_factory.mktemp("prune-adapters")
    return {kind: save_adapter(tiny_model_dir, folder / kind, **options) for kind, options in KINDS.items()}


@pytest.fixture(scope="session")
def loaded(tiny_model_dir: Path, adapters: dict[str, Path]) -> dict[str, Any]:
    """Kind -> the model with its adapter."""
    return {kind: load_model(str(tiny_model_dir), "float32", "cpu", str(path)) for kind, path in adapters.items()}
