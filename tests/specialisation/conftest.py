"""A tiny extended model, texts in three made-up languages, and what `neuronmoe specialise` says about them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from neuronmoe_plugins.corpora import parse_corpus_specs
from neuronmoe_plugins.specialisation import SpecialiseOptions, specialise
from specialisation.extending import EXPERTS, save_adapter

ALPHABETS = {"en": "abcdefgh", "el": "αβγδεζηθ", "tr": "çğışöüab"}
SENTENCES = 24


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of sentences, each language in its own letters, with blanks and full stops in common."""
    folder = tmp_path_factory.mktemp("specialise-texts")
    generator = random.Random(7)
    paths = {}
    for language, letters in ALPHABETS.items():
        lengths = (generator.randint(3, 14) for _ in range(SENTENCES))
        lines = [generator.choice(letters) + "".join(generator.choices(letters + " ", k=n)) + "." for n in lengths]
        paths[language] = folder / f"{language}.txt"
        paths[language].write_text("\n".join(lines), encoding="utf-8")
    return paths


@pytest.fixture(scope="session")
def texts(corpora: dict[str, Path]) -> dict[str, list[str]]:
    """The sentences in those files."""
    return {language: path.read_text(encoding="utf-8").splitlines() for language, path in corpora.items()}


@pytest.fixture(scope="session")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Top-k -> a trained adapter with mixtures in layers 0, 2 and 3."""
    folder = tmp_path_factory.mktemp("specialise-adapters")
    return {topk: save_adapter(tiny_model_dir, folder / f"top-{topk}", EXPERTS, topk=topk) for topk in (1, 2)}


@pytest.fixture(scope="session")
def options(tiny_model_dir: Path, adapters: dict[int, Path], corpora: dict[str, Path], tmp_path_factory: Any) -> Any:
    """All sentences, on the CPU."""
    specs = parse_corpus_specs([f"{language}={path}" for language, path in corpora.items()])
    unused = tmp_path_factory.mktemp("specialise") / "unused"
    return SpecialiseOptions(
        str(tiny_model_dir), str(adapters[2]), unused, specs, samples=SENTENCES, min_sentences=5, device="cpu"
    )


@pytest.fixture(scope="session")
def result(options: SpecialiseOptions, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What one run returned, and the folder that it wrote."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("specialise-result") / "deep" / "out"
    return specialise(replace(options, output=folder)), folder


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw: most of a run on so small a model."""
    monkeypatch.setattr("neuronmoe_plugins.specialisation.display.save_figures", lambda *_: None)
