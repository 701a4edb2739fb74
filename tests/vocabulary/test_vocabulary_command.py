"""`neuronmoe vocabulary`: the model that it writes, against the base's own weights and logits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from greek import ENGLISH, extend, greek_texts, save_base, save_texts
from typer.testing import CliRunner

from data_folders import save_data
from made_tokenizers import fast_tokenizer, trained_tokenizer, with_tokenizer, word_tokenizer
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.host_versions import weights_dtype
from neuronmoe_plugins.models import new_token_rows
from neuronmoe_plugins.tokenizer_fit import TokenizerFit
from neuronmoe_plugins.vocabulary.tokenizer import KeptText

OLD_ROWS = 401


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, **weights_dtype("auto"))
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_is_the_base_with_rows_behind_its_own(tmp_path: Path, tied: bool) -> None:
    base_folder = save_base(tmp_path / "base", tied=tied)
    extended = extend(tmp_path, base_folder)
    (old, old_tokenizer), (new, new_tokenizer) = load(base_folder), load(tmp_path / "extended")
    assert new.config.vocab_size == 512 and new.config.tie_word_embeddings is tied
    assert len(new_tokenizer) == OLD_ROWS + 60
    texts = [*ENGLISH[:5], "A turn ends <|turn|> here."]
    ids = old_tokenizer(texts)["input_ids"]
    assert new_tokenizer(texts)["input_ids"] == ids
    for sentence in ids:
        with torch.no_grad():
            before, after = (model(torch.tensor([sentence])).logits[0] for model in (old, new))
        assert after[:, :OLD_ROWS].equal(before)
    heads = [(model.get_input_embeddings().weight, model.get_output_embeddings().weight) for model in (old, new)]
    assert (heads[1][0] is heads[1][1]) is tied
    for before, after in zip(*heads, strict=True):
        assert after[:OLD_ROWS].equal(before)
        for place, learnt in enumerate(extended.record["learnt"]):
            pieces = old_tokenizer(learnt["text"])["input_ids"] if "�" not in learnt["text"] else None
            if pieces:
                torch.testing.assert_close(after[OLD_ROWS + place], before[pieces].mean(dim=0))
        torch.testing.assert_close(after[OLD_ROWS + 60 :], before.mean(dim=0).expand(51, -1))
    others = {name: weight for name, weight in old.state_dict().items() if "embed" not in name and "head" not in name}
    assert all(new.state_dict()[name].equal(weight) for name, weight in others.items())


def test_the_report_says_what_was_gained(tmp_path: Path, base: Path) -> None:
    extended = extend(tmp_path, base)
    record = json.loads((tmp_path / "extended" / "neuronmoe_vocabulary.json").read_text(encoding="utf-8"))
    assert record == extended.record
    (_, before), (_, after) = load(base), load(tmp_path / "extended")
    texts = (tmp_path / "el.txt").read_text(encoding="utf-8").splitlines()
    greek_text, english = record["corpora"]
    assert greek_text["before"] == TokenizerFit.of(before, texts).record()
    assert greek_text["after"] == TokenizerFit.of(after, texts).record()
    assert greek_text["after"]["tokens_per_word"] < greek_text["before"]["tokens_per_word"] / 2
    assert (english["use"], english["cut_otherwise"], english["texts"]) == ("kept", 0, len(ENGLISH))
    assert english["before"] == english["after"]
    # Float32, an embedding and a head of 32 columns.
    assert (record["rows_before"], record["rows"], record["added_bytes"]) == (OLD_ROWS, 512, 111 * 32 * 4 * 2)
    assert [each["id"] for each in record["learnt"]] == list(range(OLD_ROWS, OLD_ROWS + 60))
    config = json.loads((tmp_path / "extended" / "config.json").read_text())
    assert config["neuronmoe_vocabulary"] | {"hash": None} == {
        "first": OLD_ROWS,
        "tokens": 60,
        "modules": ["embed_tokens", "lm_head"],
        "hash": None,
    }


def test_a_model_can_be_extended_again(tmp_path: Path, base: Path) -> None:
    """The rows of both times are new, until an adapter has trained them."""
    (tmp_path / "again").mkdir()
    extend(tmp_path, base, tokens=20)
    other = ["Ünlü bir şair, çocukluğunda öğrendiği şarkıyı söylüyor."] * 20
    second = extend(
        tmp_path / "again", tmp_path / "extended", tokens=7, learnt=other, kept=[*ENGLISH, *greek_texts(99)]
    )
    assert second.record["first_token"] == OLD_ROWS + 20
    config = json.loads((tmp_path / "again" / "extended" / "config.json").read_text())["neuronmoe_vocabulary"]
    assert (config["first"], config["tokens"]) == (OLD_ROWS, 27)
    once = json.loads((tmp_path / "extended" / "config.json").read_text())["neuronmoe_vocabulary"]
    assert config["hash"] != once["hash"]


def test_old_tokens_can_be_named_to_be_trained_with_the_new_ones(tmp_path: Path, base: Path) -> None:
    (tmp_path / "again").mkdir()
    extend(tmp_path, base, tokens=20, train_also=("<|turn|>",))
    (model, tokenizer), (old, _) = load(tmp_path / "extended"), load(base)
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    rows = [turn, *range(OLD_ROWS, OLD_ROWS + 20)]
    assert new_token_rows(model.config) == {"embed_tokens": rows, "lm_head": rows}
    assert model.get_input_embeddings().weight[turn].equal(old.get_input_embeddings().weight[turn])
    texts = [*ENGLISH, *greek_texts(99)]
    other = ["Ünlü bir şair, çocukluğunda öğrendiği şarkıyı söylüyor."] * 20
    extend(tmp_path / "again", tmp_path / "extended", tokens=7, learnt=other, kept=texts)
    again = load(tmp_path / "again" / "extended")[0].config
    assert new_token_rows(again)["lm_head"] == [turn, *range(OLD_ROWS, OLD_ROWS + 27)]
    (tmp_path / "refused").mkdir()
    with pytest.raises(UserError) as error:
        extend(tmp_path / "refused", base, train_also=("<|turn|>", "<|im_end|>"))
    assert str(error.value) == (
        f"--train-also <|im_end|>: the tokenizer of {base} has no such token; name one of its own"
    )


def test_spare_rows_are_used_first_and_the_dtype_stays(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", rows=448)
    load(folder)[0].to(torch.bfloat16).save_pretrained(folder)
    extended = extend(tmp_path, folder, tokens=47, initialise="random", seed=3)
    old, new = load(folder)[0], load(tmp_path / "extended")[0]
    assert extended.record["added_bytes"] == 0 and new.dtype == torch.bfloat16
    before, after = (model.get_input_embeddings().weight for model in (old, new))
    assert after.shape == before.shape and after[:OLD_ROWS].equal(before[:OLD_ROWS])
    rows, known = after[OLD_ROWS:].float(), before[:OLD_ROWS].float()
    assert not rows.equal(before[OLD_ROWS:].float())
    torch.testing.assert_close(rows.std(), known.std(), rtol=0.1, atol=0)
    torch.testing.assert_close(rows.mean(), known.mean(), rtol=0, atol=0.02)


def test_a_folder_of_data_says_what_is_learnt_and_kept(tmp_path: Path, base: Path) -> None:
    """And held-out text shows how text is cut that was not seen, of which there is more to merge."""
    english = [text for text in ENGLISH if text.strip()]
    unseen = ["δικαίωμα", "nothing new"]
    datasets = {
        "a": ("el", "target", greek_texts(200)),
        "b": ("en", "replay", english),
        "c": ("en", "held-out", unseen),
    }
    data, output = save_data(tmp_path / "data", datasets), tmp_path / "extended"
    done = CliRunner().invoke(
        app, ["vocabulary", "--model", str(base), "--data", str(data), "--tokens", "60", "--output", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert "60 new tokens from 401 on, 111 rows" in done.output and f"Wrote {output}" in done.output
    uses = [(each["language"], each["use"], each["cut_otherwise"]) for each in json.loads(
        (output / "neuronmoe_vocabulary.json").read_text(encoding="utf-8")
    )["corpora"]]  # fmt: skip
    assert uses == [("el", "learnt", None), ("en", "kept", 0), ("en", "measured", 1)]


def test_a_text_to_keep_that_would_be_cut_otherwise_is_refused(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof does not rest on what was left out: it compares the tokens of the tokenizer that is written."""
    monkeypatch.setattr(KeptText, "may_merge", lambda *_: True)
    with pytest.raises(UserError, match=r"en\.txt:2 is text to keep, and the new tokenizer would cut it otherwise$"):
        extend(tmp_path, base, kept=["Fine.", "The δικαίωμα"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["el.txt", "en.txt"]


def characters(**more: Any) -> Any:
    from tokenizers import models

    return fast_tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, [], **more))


KINDS = {
    "a WordLevel": lambda: word_tokenizer(["one"]),
    "of SentencePiece's kind (with byte_fallback)": lambda: characters(byte_fallback=True),
    "a BPE of characters": characters,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tokenizers_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = save_base(tmp_path / "base", tokenizer=KINDS[kind]())
    with pytest.raises(UserError) as refused:
        extend(tmp_path, folder)
    assert str(refused.value) == (
        f"--model {folder}: its tokenizer is {kind}, and merges are learnt for a byte-level BPE alone, as SmolLM2, "
        "Llama 3 and Qwen have; take such a model"
    )
    assert not (tmp_path / "extended").exists()


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path, base: Path) -> None:
    from transformers import ByT5Tokenizer

    folder = with_tokenizer(base, tmp_path / "bytes", ByT5Tokenizer())
    with pytest.raises(UserError, match=r"bytes: its tokenizer has no fast version; name a model with a tokenizer\.js"):
        extend(tmp_path, folder)
    assert not (tmp_path / "extended").exists()


def test_too_little_text_says_how_many_tokens_there_would_be(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError) as refused:
        extend(tmp_path, base, tokens=5000)
    said = str(refused.value)
    assert said.startswith("--tokens 5000: the text to learn from gives only ") and said.endswith("ask for fewer")
    possible = int(said.split("only ")[1].split()[0].replace(",", ""))
    assert not (tmp_path / "extended").exists()
    assert extend(tmp_path, base, tokens=possible).record["tokens"] == possible
    # Tokens that are there already are not learnt again.
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=r"^--tokens 1: the text to learn from gives only 0 that it has 10 times or mo"):
        extend(tmp_path / "again", tmp_path / "extended", tokens=1)
    assert not (tmp_path / "again" / "extended").exists()


def test_bad_input_is_refused_in_a_line(tmp_path: Path, base: Path) -> None:
    short = save_base(tmp_path / "short", tokenizer=trained_tokenizer(ENGLISH, 400), rows=400)
    with pytest.raises(UserError, match=r"tokens up to 400, but its embedding 400 rows; put the model's own tokenizer"):
        extend(tmp_path, short)
    (tmp_path / "extended").mkdir()
    (tmp_path / "extended" / "mine").touch()
    with pytest.raises(UserError, match=r"extended exists already: choose another folder, or remove it$"):
        extend(tmp_path, base)
    text = str(save_texts(tmp_path / "text.txt", ["a"]))
    given = {"--model": str(base), "--output": str(tmp_path / "new"), "--tokens": "5", "--corpus": f"el={text}"}
    for changed, said in (
        ({"--tokens": "0"}, "--tokens is 0; it must be at least 1"),
        ({"--corpus": None}, "nothing to learn from: pass --corpus LANGUAGE=SOURCE, or --data DIR"),
        ({}, "no text to keep: pass --keep LANGUAGE=SOURCE of the old languages, or --data DIR"),
        ({"--keep": "en"}, "--keep 'en' is not LANGUAGE=SOURCE, as in el=greek.jsonl (letters, digits, - and _)"),
        ({"--data": str(tmp_path)}, f"--data {tmp_path} says what --corpus says; leave one out"),
        ({"--keep": f"en={tmp_path / 'no.txt'}"}, "--keep en="),
        ({"--keep": f"en={text}", "--seed": "3"}, "--seed has no effect with --initialise mean; leave it out"),
        ({"--keep": f"en={text}", "--initialise": "align"}, "unknown --initialise 'align'; there are: mean, random"),
        ({"--keep": f"en={text}", "--model": str(tmp_path / "no")}, f"--model {tmp_path / 'no'} does not exist"),
    ):
        words = [word for pair in (given | changed).items() if pair[1] is not None for word in pair]
        refused = CliRunner().invoke(app, ["vocabulary", *words])
        assert isinstance(refused.exception, UserError) and str(refused.exception).startswith(said), refused
    assert not (tmp_path / "new").exists()
