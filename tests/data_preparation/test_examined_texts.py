"""What takes a look at the texts: tokens, sentences, languages, near-duplicates, limits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from made_tokenizers import word_tokenizer
from neuronmoe_plugins.data import choosing, read_manifest
from neuronmoe_plugins.data.documents import Keys
from neuronmoe_plugins.errors import UserError


def sentence(generator: random.Random, letters: str) -> str:
    lengths = [generator.randrange(2, 9) for _ in range(generator.randrange(4, 12))]
    words = ("".join(generator.choices(letters, k=length)) for length in lengths)
    return " ".join(words).capitalize() + "."


def documents(number: int, seed: int = 0) -> list[str]:
    """Greek-looking documents of one to six sentences."""
    generator = random.Random(seed)
    count = [generator.randrange(1, 7) for _ in range(number)]
    return [" ".join(sentence(generator, "αβγδεζηθικλμνοπρστυφχψω") for _ in range(k)) for k in count]


def in_order(texts: list[str], seed: int = 22) -> list[str]:
    """The texts in the order of drawing."""
    keys = Keys(seed)
    return sorted(texts, key=lambda text: keys.of(text.encode()))


@pytest.mark.parametrize("at_once", [1, 7, choosing.MOST_AT_ONCE])
@pytest.mark.parametrize("amount", [1, 5_000, 30_000])
def test_tokens_are_the_models_and_the_fewest_that_reach_the_amount(
    at_once: int, amount: int, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "MOST_AT_ONCE", at_once)
    texts = documents(60 if at_once == 1 else 300)
    write_jsonl(tmp_path / "el.jsonl", texts)
    spec = write_spec(tmp_path / "spec.yaml", [{"tokens": amount, "shortage": "warn"}], tokenizer=str(tiny_model_dir))
    prepared = prepare(spec, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    total, expected = 0, []
    for text in in_order(texts):
        if total >= amount:
            break
        total += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        expected.append(text)
    assert set(texts_of(tmp_path / "out")) == set(expected)
    assert entry_of(prepared)["tokens"] == total
    assert entry_of(prepared)["complete"] == (total >= amount)


def test_tokens_are_counted_for_other_amounts_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", documents(50))
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 20}], tokenizer=str(tiny_model_dir))
    prepared = prepare(spec, tmp_path / "out")
    # The tiny tokenizer has a token per byte.
    assert entry_of(prepared)["tokens"] == entry_of(prepared)["bytes"]


def test_how_the_tokenizer_fits_is_in_the_manifest(tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = documents(600)
    write_jsonl(tmp_path / "el.jsonl", texts)
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 600}], tokenizer=str(tiny_model_dir))
    prepared = prepare(spec, tmp_path / "out")
    fit = entry_of(prepared)["tokenizer"]
    # A sample of 500, cut to 1,000 characters.
    assert (fit["texts"], fit["tokens_per_byte"], fit["unknown"], fit["lost"]) == (500, 1, 0, 0)
    words = sum(len(text.split()) for text in texts)
    assert fit["tokens_per_word"] == pytest.approx(sum(len(text.encode()) for text in texts) / words, rel=0.02)
    assert prepared.warnings() == []
    assert read_manifest(tmp_path / "out").datasets[0].documents == 600


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("unknown", [1, 3])
def test_words_that_the_tokenizer_does_not_know(unknown: int, form: str, tmp_path: Path) -> None:
    """One word in twenty is a warning; three are too many, and nothing is published."""
    words = [f"λέξη{number}" for number in range(20)]
    write_jsonl(tmp_path / "el.jsonl", [f"{' '.join(words)} {number}" for number in range(40)])
    word_tokenizer([*words[unknown:], *map(str, range(40))]).save_pretrained(tmp_path / "tokenizer")
    top = {"tokenizer": str(tmp_path / "tokenizer"), "format": form}
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 40}], **top)
    start = f"tokenizer {tmp_path / 'tokenizer'}: its tokenizer does not know all of el_train: "
    if unknown == 1:
        (warning,) = prepare(spec, tmp_path / "out").warnings()
        assert warning.startswith(f"{start}4.8% of the tokens are unknown, and ")
        return
    with pytest.raises(UserError, match=rf"{start}14\.3% .*; take a model whose tokenizer has this script"):
        prepare(spec, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".data.partial"]


def test_a_tokenizer_is_relative_to_the_spec(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/model").symlink_to(tiny_model_dir)
    (tmp_path / "model").mkdir()  # where the command is typed
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "specs/el.jsonl", ["ένα"])
    spec = write_spec(Path("specs/spec.yaml"), [{"documents": 1}], tokenizer="model")
    assert entry_of(prepare(spec, tmp_path / "out"))["tokens"] == len("ένα".encode())


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", documents(5))
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 2}], tokenizer=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none"):
        prepare(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sentences_are_one_of_each_document_and_no_document_is_used_again(tmp_path: Path) -> None:
    texts = documents(100)
    write_jsonl(tmp_path / "el.jsonl", texts)
    given = [
        {"documents": 60},
        {"name": "el_analysis", "role": "analysis", "sentences": 40, "filters": {"min_characters": 20}},
    ]
    prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    sentences, rest = texts_of(tmp_path / "out", "el_analysis"), texts_of(tmp_path / "out")
    assert len(sentences) == len(set(sentences)) == 40
    assert all(len(text) >= 20 and text.count(".") == 1 for text in sentences)
    used = [text for text in texts if any(sentence in text for sentence in sentences)]
    assert len(used) == 40
    assert set(rest) == set(texts) - set(used)


@pytest.mark.parametrize("at_once", [1, choosing.MOST_AT_ONCE])
def test_a_sentence_of_many_documents_is_drawn_once(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "MOST_AT_ONCE", at_once)
    texts = [f"Κοινή πρόταση. Άλλη {number}." for number in range(30)]
    write_jsonl(tmp_path / "el.jsonl", texts)
    given = [{"name": "el_analysis", "role": "analysis", "sentences": "all", "filters": {"min_characters": 14}}]
    prepared = prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    assert texts_of(tmp_path / "out", "el_analysis") == ["Κοινή πρόταση."]
    assert entry_of(prepared, "el_analysis")["passed_over"] == {"equal to another": 29}


def test_documents_without_a_fitting_sentence_are_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", ["Μικρή.", "Άλλη.", "Αυτή είναι αρκετά μεγάλη πρόταση."])
    given = [{"sentences": "all", "filters": {"min_characters": 20}}]
    prepared = prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["Αυτή είναι αρκετά μεγάλη πρόταση."]
    assert entry_of(prepared)["passed_over"] == {"without a sentence within the limits": 2}


def test_limits_of_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", ["α" * 4, " " + "α" * 5 + " ", "α" * 9, "α" * 10, ""])
    given = [{"documents": "all", "filters": {"min_characters": 5, "max_characters": 9}}]
    prepared = prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["α" * 5, "α" * 9]
    expected = {"blank": 1, "shorter than min_characters": 1, "longer than max_characters": 1}
    assert entry_of(prepared)["passed_over"] == expected
    assert "tokenizer" not in entry_of(prepared)


GREEK = "Το ποτάμι κυλάει αργά μέσα από την πόλη, και το βράδυ οι άνθρωποι περπατούν στην όχθη του, αριθμός {}."
TURKISH = "Nehir şehrin içinden yavaşça akıyor ve akşamları insanlar kıyısında yürüyüş yapıyor, numara {}."


def test_texts_in_another_language_are_passed_over(tmp_path: Path) -> None:
    texts = [(TURKISH if number % 3 else GREEK).format(number) for number in range(60)]
    write_jsonl(tmp_path / "el.jsonl", texts)
    for language, template, number in (("el", GREEK, 15), ("tr", TURKISH, 35)):
        given = [{"language": language, "documents": number, "filters": {"language": 0.5}}]
        prepared = prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / language)
        expected = [text for text in in_order(texts) if text.startswith(template[:5])][:number]
        assert set(texts_of(tmp_path / language)) == set(expected)
        assert entry_of(prepared)["passed_over"]["in another language"] > 0


def test_rounds_grow_where_few_texts_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round reads the source again: 1 of 200 texts passes, and yet there are few rounds."""
    rounds: list[int] = []
    look_at = choosing.Chooser._look_at
    monkeypatch.setattr(
        choosing.Chooser, "_look_at", lambda self, part: rounds.append(len(part)) or look_at(self, part)
    )
    texts = [(GREEK if number % 200 == 0 else TURKISH).format(number) for number in range(4000)]
    write_jsonl(tmp_path / "el.jsonl", texts)
    prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 10, "filters": {"language": 0.5}}]), tmp_path / "out")
    assert len(texts_of(tmp_path / "out")) == 10
    assert len(rounds) <= 20
    assert sum(rounds) < 4000


def test_languages_that_no_library_knows_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", ["ένα"])
    for given, message in {
        "filters": ({"documents": 1, "filters": {"language": 0.5}}, "el_train: 'xq' is none of the 176 languages"),
        "sentences": ({"sentences": 1}, "el_train: 'xq' is no language code, by which"),
    }.values():
        spec = write_spec(tmp_path / "spec.yaml", [{"language": "xq", **given}])
        with pytest.raises(UserError, match=message):
            prepare(spec, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def changed(text: str) -> str:
    """The same with one word replaced."""
    words = text.split(" ")
    words[len(words) // 2] = "ΑΛΛΟ"
    return " ".join(words)


def test_near_duplicates_are_found_over_all_data_sets_and_runs(tmp_path: Path) -> None:
    generator = random.Random(3)
    texts = [" ".join(sentence(generator, "αβγδεζηθ") for _ in range(12)) for _ in range(80)]
    write_jsonl(tmp_path / "el.jsonl", texts + [changed(text) for text in texts])
    given = [
        {"documents": 50},
        {"name": "el_heldout", "role": "held-out", "documents": 30},
    ]
    prepared = prepare(write_spec(tmp_path / "spec.yaml", given, near_duplicates=0.7), tmp_path / "out")
    drawn = texts_of(tmp_path / "out") + texts_of(tmp_path / "out", "el_heldout")
    assert len({text for text in texts if text in drawn or changed(text) in drawn}) == 80
    passed_over = [entry_of(prepared, name)["passed_over"]["near another"] for name in ("el_train", "el_heldout")]
    assert sum(passed_over) <= 80
    assert min(passed_over) > 0
    # Without it, there is no such pair to miss.
    prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "plain")
    plain = texts_of(tmp_path / "plain") + texts_of(tmp_path / "plain", "el_heldout")
    assert len({text for text in texts if text in plain or changed(text) in plain}) < 80
