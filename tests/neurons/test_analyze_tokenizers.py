"""What an analysis makes of its tokenizer: texts that it does not know, tokens per word, and a chat template."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from made_tokenizers import with_tokenizer, word_tokenizer
from neuronmoe_plugins import AnalyzeOptions, analyze, parse_corpus_specs
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.metrics import AVERAGE_PRECISION
from neuronmoe_plugins.neurons.sentences import prepare_sentences

WORDS = {"en": ["one", "two", "three", "four"], "el": ["ένα", "δύο", "τρία", "τέσσερα"]}
ALL = [word for words in WORDS.values() for word in words]
TEMPLATE = "{{ bos_token }}[{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}]{% endfor %}</s>"


@pytest.fixture
def options(tiny_model_dir: Path, tmp_path: Path) -> AnalyzeOptions:
    """20 sentences of 5 words a language; of the Greek words `πέντε` is 1 in 20."""
    generator = random.Random(4)
    for language, words in WORDS.items():
        lines = [" ".join(generator.choices(words, k=5)) for _ in range(20)]
        if language == "el":
            lines = [line if number % 4 else f"{line[: line.rindex(' ')]} πέντε" for number, line in enumerate(lines)]
        (tmp_path / f"{language}.txt").write_text("\n".join(lines), encoding="utf-8")
    specs = parse_corpus_specs([f"{language}={tmp_path / language}.txt" for language in WORDS])
    return AnalyzeOptions(str(tiny_model_dir), tmp_path / "out", specs, samples=20, device="cpu")


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (None, r"model has no tokenizer_config\.json; put the model's tokenizer files there"),
        (
            word_tokenizer(ALL[:6]),
            r": its tokenizer does not know all of el: [45]\d\.\d% of the tokens are ",
        ),
        (
            word_tokenizer([*map(str, range(260)), *ALL, "πέντε"]),
            "^the tokenizer gives the token 272, but the model's 259 tokens end at 258; put the model's own",
        ),
    ],
    ids=["none", "half of the Greek words", "another model's"],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    options: AnalyzeOptions, tiny_model_dir: Path, tmp_path: Path, tokenizer: Any, message: str
) -> None:
    model = with_tokenizer(tiny_model_dir, tmp_path / "model", tokenizer)
    with pytest.raises(UserError, match=message):
        analyze(replace(options, model=str(model)))
    assert not (tmp_path / "out").exists()


def test_a_few_unknown_words_are_a_warning_and_recorded(
    options: AnalyzeOptions, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = with_tokenizer(tiny_model_dir, tmp_path / "model", word_tokenizer(ALL))
    corpora = [f"--corpus={spec}" for spec in options.corpora]
    command = ["analyze", f"--model={model}", *corpora, "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--samples=20", "--device=cpu"])
    assert done.exit_code == 0, done.exception
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    start = f"Warning: --model {model}: its tokenizer does not know all of el: 5.0% of the tokens are unknown, and "
    assert [line.startswith(start) for line in warnings] == [True]
    fits = [corpus["tokenizer"] for corpus in Analysis.load(tmp_path / "out").summary["corpora"]]
    assert [(fit["words"], fit["tokens"], fit["unknown"], fit["texts"]) for fit in fits] == [
        (100, 100, 0, 20), (100, 100, 5, 20)
    ]  # fmt: skip
    letters = (tmp_path / "el.txt").read_bytes().replace(b"\n", b"")
    assert fits[1]["tokens_per_byte"] == 100 / len(letters)
    shown = [line for line in done.stdout.splitlines() if line.startswith("el: ")]
    assert [line.partition("; ")[2] for line in shown] == [f"1.00 tokens per word, {100 / len(letters):.2f} per byte"]
    # An older analysis has none of this, and opens.
    path = tmp_path / "out" / "summary.json"
    summary = json.loads(path.read_text())
    for corpus in summary["corpora"]:
        del corpus["tokenizer"]
    path.write_text(json.dumps(summary))
    assert Analysis.load(tmp_path / "out").warnings() == []


def with_template(model: Path, folder: Path, template: str = TEMPLATE) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    return with_tokenizer(model, folder, tokenizer)


def test_in_a_chat_template_a_sentences_own_tokens_count(
    options: AnalyzeOptions, tiny_model_dir: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat = replace(options, model=str(with_template(tiny_model_dir, tmp_path / "chat")), chat_template=True)
    sentences, _ = prepare_sentences(replace(chat, max_tokens=25), AVERAGE_PRECISION)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert sentences.own is not None
    texts = [line for language in WORDS for line in (tmp_path / f"{language}.txt").read_text().splitlines()]
    for text, ids, (start, stop) in zip(texts, sentences.token_ids, sentences.own, strict=True):
        own = text.encode()[:25].decode(errors="replace")
        assert tokenizer.decode(ids) == f"<s>[user: {own}]</s>"
        assert tokenizer.decode(ids[start:stop]) == own
    assert sentences.tokens().max() == 25
    # What is pooled, by the definition.
    analysis = analyze(replace(chat, top_n=10**6, min_score=0.0))
    assert analysis.summary["chat_template"] is True
    whole, _ = prepare_sentences(chat, AVERAGE_PRECISION)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    up_proj, means = model.model.layers[1].mlp.up_proj, []
    spans = iter(whole.own or ())
    up_proj.register_forward_hook(lambda _module, _inputs, out: means.append(out[0][slice(*next(spans))].mean(dim=0)))
    with torch.no_grad():
        for ids in whole.token_ids:
            model(torch.tensor([ids]))
    expected = AVERAGE_PRECISION.score(torch.stack(means).numpy(), whole.samples())  # type: ignore[arg-type]
    found = {n.unit: n.score for n in analysis.neurons if (n.language, n.layer, n.module) == ("el", 1, "mlp.up_proj")}
    np.testing.assert_allclose([found[unit] for unit in range(48)], expected[1], atol=1e-9)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"^--chat-template: the tokenizer of .* has no chat template; leave the option out$"),
        ("{{ messages[0]['content'] | upper }}", "cannot be used: it does not repeat the message 'one"),
        ("{{ messages[0]['content'] }", r"^--chat-template: that of .* cannot be used: .*; leave it out$"),
        ("{{ bos_token }}", "cannot be used: not enough values"),
    ],
)
def test_without_a_template_that_can_be_used(
    options: AnalyzeOptions, tiny_model_dir: Path, tmp_path: Path, template: str | None, message: str
) -> None:
    model = tiny_model_dir if template is None else with_template(tiny_model_dir, tmp_path / "chat", template)
    with pytest.raises(UserError, match=message):
        analyze(replace(options, model=str(model), chat_template=True))
    assert not (tmp_path / "out").exists()
