"""`neuronmoe analyze` on every kind of corpus: the sentences count, not the file that holds them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import Analysis

LETTERS = {"en": "abcdefgh ", "el": "αβγδεζηθ ", "tr": "çğışöüab "}


def sentences(language: str, count: int, seed: int = 0) -> list[str]:
    generator = random.Random(f"{language}{seed}")
    return ["".join(generator.choices(LETTERS[language], k=generator.randint(5, 25))) + "." for _ in range(count)]


def analyze(model: Path, output: Path, *more: str) -> Any:
    options = ["--device", "cpu", "--top-n", "60", "--output", str(output)]
    result = CliRunner().invoke(app, ["analyze", "--model", str(model), *options, *more])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_kinds_of_files_give_the_same_neurons(tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = {language: sentences(language, 30) for language in ("en", "el")}
    folder = tmp_path / "el"
    folder.mkdir()
    for language, lines in texts.items():
        (tmp_path / f"{language}.txt").write_text("\n".join(lines))
        pq.write_table(pa.table({"content": lines}), tmp_path / f"{language}.parquet")
    (folder / "a.txt").write_text("\n".join(texts["el"][:10]))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts["el"][10:]))
    plain = ["--samples", "25", f"--corpus=en={tmp_path}/en.txt"]
    analyze(tiny_model_dir, tmp_path / "txt", *plain, f"--corpus=el={tmp_path}/el.txt")
    analyze(tiny_model_dir, tmp_path / "folder", *plain, f"--corpus=el={folder}")
    parquet = [f"--corpus={language}={tmp_path}/{language}.parquet" for language in texts]
    analyze(tiny_model_dir, tmp_path / "parquet", "--samples", "25", "--text-field", "content", *parquet)
    expected = Analysis.load(tmp_path / "txt")
    assert expected.neurons
    for name in ("folder", "parquet"):
        assert Analysis.load(tmp_path / name).neurons == expected.neurons
    assert Analysis.load(tmp_path / "folder").summary["corpora"][1]["files"] == 2


def test_texts_are_split_into_sentences(tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = {language: sentences(language, 30) for language in ("en", "el")}
    for language, lines in texts.items():
        paragraphs = [" ".join(text.strip().capitalize() for text in lines[i : i + 3]) for i in range(0, 30, 3)]
        (tmp_path / f"{language}.txt").write_text("\n".join(paragraphs))
    corpora = [f"--corpus={language}={tmp_path}/{language}.txt" for language in texts]
    with pytest.raises(UserError, match="has 10 sentences, 20 were asked for"):
        analyze(tiny_model_dir, tmp_path / "out", "--samples", "20", *corpora)
    analyze(tiny_model_dir, tmp_path / "out", "--samples", "20", "--split-sentences", *corpora)
    summary = Analysis.load(tmp_path / "out").summary
    assert summary["split_sentences"] is True
    assert summary["corpora"][0]["available"] > 20
    assert "sentencex" in summary["versions"]


def test_sentences_in_two_languages_are_counted_and_shown(tiny_model_dir: Path, tmp_path: Path) -> None:
    for language in ("en", "el"):
        (tmp_path / f"{language}.txt").write_text("\n".join([*sentences(language, 20), "OK 123", "OK 123"]))
    corpora = [f"--corpus={language}={tmp_path}/{language}.txt" for language in ("en", "el")]
    result = analyze(tiny_model_dir, tmp_path / "out", "--samples", "22", *corpora)
    assert "Warning: 1 sampled sentences are the same in en and el, as 'OK 123'" in result.stderr
    summary = Analysis.load(tmp_path / "out").summary
    assert summary["shared_sentences"]["count"] == 1
    assert [corpus["duplicates"] for corpus in summary["corpora"]] == [1, 1]


def test_one_text_for_two_languages_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    for language in ("en", "el"):
        (tmp_path / f"{language}.txt").write_text("\n".join(sentences("en", 20)))
    corpora = [f"--corpus={language}={tmp_path}/{language}.txt" for language in ("en", "el")]
    with pytest.raises(UserError, match="have the same content"):
        analyze(tiny_model_dir, tmp_path / "out", "--samples", "20", *corpora)


@pytest.fixture
def concepts(tmp_path: Path) -> Path:
    """Three languages; each has negatives of its own, some of which are nobody's positives."""
    folder = tmp_path / "sense"
    folder.mkdir()
    for language in LETTERS:
        others = [other for other in LETTERS if other != language]
        record = {
            "concept": language,
            "group": "sense",
            "sentences": {
                "positive": sentences(language, 12),
                "negative": [text for other in others for text in sentences(other, 6) + sentences(other, 5, seed=1)],
            },
        }
        (folder / f"{language}.json").write_text(json.dumps(record))
    return tmp_path


def test_concepts_are_scored_on_their_own_negatives(tiny_model_dir: Path, concepts: Path, tmp_path: Path) -> None:
    everything = ["--top-n", "10000", "--min-score", "0"]
    analyze(tiny_model_dir, tmp_path / "out", "--concepts", str(concepts), *everything)
    analysis = Analysis.load(tmp_path / "out")
    assert analysis.summary["languages"] == ["el", "en", "tr"]
    assert [corpus["sampled"] for corpus in analysis.summary["corpora"]] == [12, 12, 12]
    for language in LETTERS:
        record = json.loads((concepts / "sense" / f"{language}.json").read_text())["sentences"]
        texts, labels = record["positive"] + record["negative"], [1] * 12 + [0] * 22
        values = q_proj_means(tiny_model_dir, texts)
        for neuron in analysis.neurons:
            if (neuron.language, neuron.layer, neuron.module) == (language, 0, "self_attn.q_proj"):
                expected = average_precision_score(labels, values[:, neuron.unit])
                assert neuron.score == pytest.approx(expected, abs=1e-6)


def q_proj_means(model_dir: Path, texts: list[str]) -> np.ndarray:
    """Of the first layer, one sentence at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = [model.model.embed_tokens(torch.tensor(tokenizer(text)["input_ids"])) for text in texts]
        outputs = [layer.self_attn.q_proj(layer.input_layernorm(states)).mean(dim=0) for states in hidden]
    return torch.stack(outputs).numpy()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "3"], "--samples has no effect with --concepts"),
        (["--seed", "3"], "--seed has no effect with --concepts"),
        (["--text-field", "x"], "--text-field has no effect with --concepts"),
        (["--split-sentences"], "--split-sentences has no effect with --concepts"),
        (["--corpus", "en=a.txt", "--corpus", "el=b.txt"], "--corpus has no effect with --concepts"),
        (["--metric", "lape"], "--metric lape compares all languages on the same sentences, but in --concepts"),
    ],
)
def test_what_concepts_cannot_be_combined_with(
    tiny_model_dir: Path, concepts: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        analyze(tiny_model_dir, tmp_path / "out", "--concepts", str(concepts), *more)


def test_no_text_at_all(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to analyse: pass --corpus"):
        analyze(tiny_model_dir, tmp_path / "out")
