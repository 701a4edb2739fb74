"""Bands of documents, and the documents that share none with an earlier one."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronmoe_plugins.data.near_duplicates import NearDuplicates, Signer, band_shape
from neuronmoe_plugins.errors import UserError

WORDS = [f"word{number}" for number in range(5000)]


def shared(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> bool:
    """Whether two documents share a band."""
    return bool((first == second).any())


def first_of_by_definition(bands: list[list[int]]) -> list[bool]:
    """The kept documents, with a set per band."""
    known: list[set[int]] = [set() for _ in bands[0]] if bands else []
    kept = []
    for document in bands:
        kept.append(not any(value in values for value, values in zip(document, known, strict=True)))
        if kept[-1]:
            for value, values in zip(document, known, strict=True):
                values.add(value)
    return kept


# Few different values make many documents share a band; high ones fill the upper bits.
HASHES = st.sampled_from([0, 1, 2, 3, 5, 2**62, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@given(
    st.integers(1, 3).flatmap(lambda bands: st.lists(st.lists(HASHES, min_size=bands, max_size=bands), max_size=40)),
    st.lists(st.integers(0, 40), max_size=12),
)
@example([[7, 1], [7, 2], [8, 2], [9, 9]], [])  # the third shares a band with the second only, which was not kept
@example([[7, 1], [7, 2], [8, 2], [9, 9]], [1, 2])
@example([[7, 8], [8, 7]], [])  # equal hashes of different bands are not shared
@example([[7, 8], [8, 7]], [1])
def test_kept_documents_are_those_of_the_definition(documents: list[list[int]], cuts: list[int]) -> None:
    num_bands = len(documents[0]) if documents else 1
    bands = np.array(documents, dtype=np.uint64).reshape(-1, num_bands)
    near_duplicates = NearDuplicates(num_bands)

    kept = [near_duplicates.first_of(batch) for batch in np.split(bands, sorted(cuts))]

    assert all(part.dtype == np.bool_ for part in kept)
    assert np.concatenate(kept).tolist() == first_of_by_definition(documents)


@pytest.mark.parametrize("batch", [1, 37, 4000])
def test_many_documents_in_batches(batch: int) -> None:
    generator = np.random.default_rng(0)
    bands = generator.integers(0, 2**64, (4000, 3), dtype=np.uint64)
    # Each tenth value repeats one of another document.
    repeated = generator.random(bands.shape) < 0.1
    bands[repeated] = generator.permuted(bands, axis=0)[repeated]
    near_duplicates = NearDuplicates(3)

    kept = np.concatenate([near_duplicates.first_of(bands[start : start + batch]) for start in range(0, 4000, batch)])

    assert kept.tolist() == first_of_by_definition(bands.tolist())
    assert 2000 < kept.sum() < 3900


def test_remembered_documents_count_as_kept() -> None:
    near_duplicates = NearDuplicates(2)
    near_duplicates.remember(np.array([[1, 2], [1, 2], [3, 4]], dtype=np.uint64))

    kept = near_duplicates.first_of(np.array([[1, 9], [9, 4], [2, 1], [5, 6]], dtype=np.uint64))

    assert kept.tolist() == [False, False, True, True]


def test_memory_is_ten_bytes_per_band() -> None:
    import tracemalloc

    num_bands, documents, batch = 14, 100_000, 10_000
    generator = np.random.default_rng(0)
    near_duplicates = NearDuplicates(num_bands)
    tracemalloc.start()
    for _ in range(documents // batch):
        near_duplicates.first_of(generator.integers(0, 2**64, (batch, num_bands), dtype=np.uint64))
    used, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert used < 10.2 * num_bands * documents
    assert most < 20 * num_bands * documents


@pytest.mark.parametrize(
    "bands", [np.zeros((2, 3), dtype=np.uint64), np.zeros((2, 2), dtype=np.int64), np.zeros(2, dtype=np.uint64)]
)
def test_bands_of_another_shape_or_type(bands: NDArray[np.uint64]) -> None:
    near_duplicates = NearDuplicates(2)

    with pytest.raises(ValueError, match="2\\) uint64"):
        near_duplicates.first_of(bands)
    with pytest.raises(ValueError, match="2\\) uint64"):
        near_duplicates.remember(bands)


@pytest.mark.parametrize(("threshold", "shape"), [(0.3, (37, 3)), (0.5, (25, 5)), (0.7, (14, 9)), (0.8, (9, 13))])
def test_shapes_are_those_of_datasketch(threshold: float, shape: tuple[int, int]) -> None:
    # MinHashLSH(threshold, num_perm=128) of datasketch 2.0.0 has these b and r.
    assert band_shape(threshold) == shape
    assert Signer(threshold, 0).num_bands == shape[0]


def overlapping_texts(generator: random.Random, similarity: float) -> tuple[str, str]:
    """Two texts of 204 different words, whose sets of 200 shingles have about this Jaccard similarity."""
    common = round(2 * 200 * similarity / (1 + similarity))
    words = generator.sample(WORDS, 604)
    return " ".join(words[:204]), " ".join([*words[: common + 4], *words[204 : 404 - common]])


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.7, 0.8, 0.9])
def test_documents_share_a_band_as_often_as_their_similarity_says(similarity: float) -> None:
    common = round(2 * 200 * similarity / (1 + similarity))
    num_bands, rows = band_shape(0.7)
    expected = 1 - (1 - (common / (400 - common)) ** rows) ** num_bands
    generator = random.Random(0)
    trials = 400

    count = 0
    for seed in range(trials):
        signer = Signer(0.7, seed)
        count += shared(*map(signer.bands, overlapping_texts(generator, similarity)))

    # Four standard deviations, and what rensa's values, which are not independent, differ from independent ones.
    bound = 4 * np.sqrt(max(expected * (1 - expected), 0.002) / trials) + 0.02
    assert abs(count / trials - expected) < bound


def test_signature_estimates_the_similarity() -> None:
    # With one value per band, the share of equal bands is MinHash's estimate.
    threshold = 0.005
    assert band_shape(threshold) == (128, 1)
    generator = random.Random(1)
    for similarity in (0.1, 0.5, 0.9):
        common = round(2 * 200 * similarity / (1 + similarity))
        true = common / (400 - common)
        estimates = []
        for seed in range(100):
            first, second = map(Signer(threshold, seed).bands, overlapping_texts(generator, similarity))
            estimates.append((first == second).mean())
        deviation = np.sqrt(true * (1 - true) / 128)
        assert abs(np.mean(estimates) - true) < 4 * deviation / 10
        assert np.std(estimates) < 1.3 * deviation


@pytest.mark.parametrize(
    "text",
    [
        "Η γάτα κοιμάται στο παράθυρο και ο σκύλος περιμένει στην πόρτα του σπιτιού μας, ώσπου να γυρίσει η γιαγιά.",
        "Kedi pencerenin önünde uyuyor, köpek ise evimizin kapısında büyükannenin dönmesini sabırla bekliyor.",
        "猫在窗台上睡觉，狗在我们家门口耐心地等着奶奶从市场上买菜回来。",
        "एक बिल्ली खिड़की पर सो रही है और कुत्ता हमारे घर के दरवाज़े पर दादी का इंतज़ार कर रहा है।",
        "แมวนอนอยู่ที่หน้าต่าง ส่วนหมารอคุณยายกลับบ้านอยู่ที่ประตู",
    ],
)
def test_one_change_in_a_longer_text_is_a_near_duplicate(text: str) -> None:
    signer = Signer(0.5, 3)
    # Every sentence is another one; else the set of shingles would be that of a single sentence.
    document = " ".join(f"{text} {number} {text[: number * 3]}" for number in range(12))

    assert shared(signer.bands(document), signer.bands(document + " ! 12"))
    assert not shared(signer.bands(document), signer.bands(document[::-1]))


def test_words_of_every_script_are_whole() -> None:
    signer = Signer(0.7, 0)

    # Cut at their vowel signs, these would be the same letters.
    assert not shared(signer.bands("कि की"), signer.bands("क क"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Straße, Öl und Ärger sind hier!", "STRASSE  Öl\nund ärger – sind hier"),
        ("ΟΔΟΣ ΟΝΕΙΡΩΝ", "οδος ονειρων"),
        ("猫在窗台上睡觉。", "猫在窗台上 睡觉"),
        ("caf\u00e9 \u1f00\u03c1\u03c7\u03ae", "cafe\u0301 \u03b1\u0313\u03c1\u03c7\u03b7\u0301"),
    ],
)
def test_case_accent_forms_and_punctuation_make_no_difference(first: str, second: str) -> None:
    signer = Signer(0.7, 0)

    assert signer.bands(first).tolist() == signer.bands(second).tolist()


def test_short_texts_are_duplicates_of_the_same_text_only() -> None:
    signer = Signer(0.7, 0)
    texts = [
        "",
        "…",
        "!?",
        "\ud800",
        "a",
        "a a",
        "b",
        "a b",
        "b a",
        "a b c d",
        "a b c d e",
        "a b c d e f",
        "猫",
        "猫在",
    ]

    bands = np.stack([signer.bands(text) for text in texts])

    assert bands.shape == (len(texts), signer.num_bands)
    assert bands.dtype == np.uint64
    assert NearDuplicates(signer.num_bands).first_of(bands).tolist() == [True] * len(texts)
    assert not NearDuplicates(signer.num_bands).first_of(np.concatenate([bands, bands]))[len(texts) :].any()


def test_bands_differ_within_a_text_and_with_the_seed() -> None:
    text = " ".join(WORDS[:100])

    bands = [Signer(0.7, seed).bands(text) for seed in range(20)]

    assert len(np.unique(bands)) == 20 * 14


TEXTS = ["", "one", "The cat sleeps.", "猫在窗台上睡觉。", "Η γάτα κοιμάται στο παράθυρο.", " ".join(WORDS)]


def test_bands_are_the_same_in_another_process() -> None:
    program = (
        "import json, sys; from neuronmoe_plugins.data.near_duplicates import Signer\n"
        "print(json.dumps([Signer(0.8, 42).bands(text).tolist() for text in json.load(sys.stdin)]))"
    )

    there = subprocess.run([sys.executable, "-c", program], input=json.dumps(TEXTS), capture_output=True, text=True)

    assert json.loads(there.stdout) == [Signer(0.8, 42).bands(text).tolist() for text in TEXTS]


# The first bands of TEXTS. They may change only with rensa's algorithm, or with ours, and then on purpose.
FIRST_BANDS = [
    12836448192359124295,
    16705969732195654481,
    431052904155344572,
    12118759677403304952,
    5923975458127493606,
    8962676930112790205,
]


def test_bands_are_those_of_earlier_releases() -> None:
    assert [int(Signer(0.8, 42).bands(text)[0]) for text in TEXTS] == FIRST_BANDS


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, float("nan")])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(UserError, match="must be between 0 and 1"):
        Signer(threshold, 0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UserError, match="must be from 0"):
        Signer(0.5, seed)


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)

    with pytest.raises(UserError, match=r"rensa: pip install 'neuronmoe-plugins\[data\]'$"):
        Signer(0.5, 0)


def test_bands_of_many_are_those_of_each() -> None:
    signer = Signer(0.8, 42)

    texts = [*TEXTS, "?!"]
    assert np.array_equal(signer.bands_of(texts), [signer.bands(text) for text in texts])
