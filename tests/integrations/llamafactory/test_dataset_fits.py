"""What a training makes of a tokenizer that does not know its texts, before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_runs import train

from made_tokenizers import fast_tokenizer, with_tokenizer
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.dataset_fits import FILE, DatasetFits

LATIN, GREEK = "abcdefghijklmnopqrstuvwxyz", "αβγδεζ"
CHAT = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat"}
STREAMED = {"streaming": True, "dataset": "el_odd", "max_steps": 2}


def letters(alphabet: str) -> Any:
    """A token per letter, `<unk>` for others."""
    from tokenizers import models

    symbols = ["<pad>", "<s>", "</s>", "<unk>", *alphabet, "!"]
    return fast_tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, [], unk_token="<unk>"))


@pytest.mark.parametrize(
    ("alphabet", "changed", "data_set", "unknown"),
    [
        (LATIN, {}, "el_even", r"9[0-9]\.\d%"),
        (LATIN, CHAT, "el_chat", r"[0-9]+\.\d%"),
        (LATIN, STREAMED, "el_odd", r"100\.0%"),
        (LATIN + GREEK, {"eval_dataset": "el_odd", "dataset": "en_odd"}, "el_odd", r"2\d\.\d%"),
        (None, {"dataset": "en_odd"}, "en_odd", r"100\.0%"),
    ],
    ids=["texts", "conversations", "streamed", "evaluated", "no tokenizer"],
)
def test_texts_that_the_tokenizer_does_not_know_are_refused(
    moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path,
    alphabet: str | None, changed: dict[str, Any], data_set: str, unknown: str,
) -> None:  # fmt: skip
    model = with_tokenizer(tiny_model_dir, tmp_path / "model", None if alphabet is None else letters(alphabet))
    (model / "model.safetensors").unlink()
    expected = (
        rf"^model_name_or_path: {model}: its tokenizer does not know all of {data_set}\.jsonl: {unknown} of the tokens"
    )
    # Older hosts say that there is no tokenizer.
    with pytest.raises(UserError if alphabet else (UserError, OSError), match=expected if alphabet else "tokenizer"):
        train(moe_args | {"model_name_or_path": str(model)} | changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_was_measured_stands_beside_the_adapter(stage1_adapter: Path) -> None:
    record = json.loads((stage1_adapter / FILE).read_text())
    assert list(record) == ["el_even.jsonl"]
    fit = record["el_even.jsonl"]
    assert (fit["texts"], fit["tokens_per_byte"], fit["tokens_per_word"], fit["unknown"]) == (200, 1, 31, 0)


def test_all_that_is_said_is_measured_of_examples_all_over_the_data_set(tmp_path: Path) -> None:
    from datasets import Dataset

    def example(question: str, answer: str | None) -> dict[str, Any]:
        answers = [] if answer is None else [{"role": "assistant", "content": answer}]
        return {"_prompt": [{"role": "user", "content": question}], "_response": answers}

    fits = DatasetFits(letters(LATIN), "M")
    fits.measure("short", Dataset.from_list([example("ab", "cd"), example("efg", None)]))
    fits.measure("long", Dataset.from_list([example("a", "b")] * 1480 + [example("ξ", "b")] * 20))
    fits.save(tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    assert (record["short"]["texts"], record["short"]["characters"]) == (3, 7)
    assert record["long"]["texts"] == 500
    assert 0 < record["long"]["unknown"] < 10
