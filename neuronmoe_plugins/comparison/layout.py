"""The layout of the paper's tables: which task and metric of lm-eval stands in which column (Tables 1 and 3).

The paper names benchmarks, not tasks or metrics. Its ARC and HellaSwag numbers of the base model (51.11 and 76.33) are
lm-eval's length-normalised accuracies, `acc_norm`; those of Belebele and MMLU are plain ones.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("EN", "EL", "TR", "HU")
# Benchmark -> its metric, and its task in each of LANGUAGES.
BENCHMARKS = {
    "ARC": ("acc_norm", ("arc_challenge", "arc_el", "arc_tr", "arc_hu")),
    "Belebele": ("acc", ("belebele_eng_Latn", "belebele_ell_Grek", "belebele_tur_Latn", "belebele_hun_Latn")),
    "HellaSwag": ("acc_norm", ("hellaswag", "hellaswag_el", "hellaswag_tr", "hellaswag_hu")),
    "MMLU": ("acc", ("mmlu", "mmlu_el", "mmlu_tr", "m_mmlu_hu")),
}
# Metrics, beside those that start with "acc", that are shares of items: shown in per cent, differences in points.
SHARES = frozenset({"chance", "em", "exact_match", "f1"})


@dataclass(frozen=True)
class Column:
    """One column of the paper's table.

    Attributes:
        benchmark: As in the paper, such as `ARC`.
        language: As in the paper, such as `EL`.
        task: lm-eval's task or group.
        key: lm-eval's metric and filter, such as `acc_norm,none`.
    """

    benchmark: str
    language: str
    task: str
    key: str


COLUMNS = tuple(
    Column(benchmark, language, task, f"{metric},none")
    for benchmark, (metric, tasks) in BENCHMARKS.items()
    for language, task in zip(LANGUAGES, tasks, strict=True)
)


def metric_of(key: str) -> str:
    """The metric of a key such as `acc_norm,none`."""
    return key.partition(",")[0]


def is_share(key: str) -> bool:
    """Whether a metric is a share of items, in 0..1, which is shown in per cent."""
    metric = metric_of(key)
    return metric.startswith("acc") or metric in SHARES
