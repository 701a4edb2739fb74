"""Languages of data sets: what is no tag, what would count as new by mistake, and what the log says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal

EN = {"original_languages": "en"}


@pytest.fixture
def tagged(moe_args: dict[str, Any], data_dir: Path, tmp_path: Path) -> Any:
    """Arguments of a run on data sets with these languages, named `a`, `b` and so on."""

    def make(*languages: Any, **more: Any) -> dict[str, Any]:
        names = "abcdef"[: len(languages)]
        entries = {name: {"file_name": "x.jsonl", "language": tag} for name, tag in zip(names, languages, strict=True)}
        (tmp_path / "x.jsonl").write_text('{"text": "x"}\n')
        (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
        data = {"dataset": ",".join(names), "dataset_dir": str(tmp_path)}
        return moe_args | data | {"generate_lang_mask": True} | more

    return make


@pytest.mark.parametrize(
    ("tag", "hint"),
    [("olld", ": did you mean old?"), ("neww", ": did you mean new?"), ("Old", ": did you mean old?")]
    + [(tag, "") for tag in ("English", "greek", "e", "el-", "el_Grek_extra", "1")],
)
def test_no_language(tagged: Any, tag: str, hint: str) -> None:
    for more in ({}, EN):
        line = refusal(tagged("new", tag, **more))
        assert line.endswith(
            f'b: "language" must be "old", "new" or a language code such as el or pt-BR; got {tag!r}{hint}'
        )


@pytest.mark.parametrize(
    ("tag", "original"),
    [
        ("EN", "en"),
        ("eng", "en"),
        ("en-US", "en"),
        ("en", "en-GB"),
        ("en_US", "en-US"),
        ("pt-BR", "pt-PT"),
        ("zh-Hant", "zh"),
    ],
)
def test_languages_written_another_way(tagged: Any, tag: str, original: str) -> None:
    message = f'a: "language": "{tag}" would count as new, but original_languages has {original}: write both alike'
    assert re.search(message, refusal(tagged(tag, original_languages=["fr", original])))


@pytest.mark.parametrize("languages", ["english", "en,old", "en,,es", "en;es", "New"])
def test_original_languages_are_codes(tagged: Any, languages: str) -> None:
    assert "original_languages must list language codes" in refusal(tagged("en", original_languages=languages))


def test_codes_of_nothing(tagged: Any) -> None:
    message = refusal(tagged("old", "new", **EN))
    assert message.startswith("original_languages has no effect: every data set is tagged")


def test_no_tag_anywhere(moe_args: dict[str, Any]) -> None:
    lpr = {"lpr_loss_coef": 0.1, "generate_lang_mask": True, "dataset": "untagged"}
    assert re.search("generate_lang_mask needs a .*but untagged has none$", refusal(moe_args | lpr))


def logged(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What the run says and warns of."""
    import llamafactory.hparams.parser as host

    notes: list[str] = []
    warnings: list[str] = []
    monkeypatch.setattr(host.logger, "info_rank0", notes.append, raising=False)
    monkeypatch.setattr(host.logger, "warning_rank0", warnings.append, raising=False)
    host.get_train_args(args)
    return (
        [line for line in notes if line.startswith("Data sets by language")],
        [line for line in warnings if "original_languages" in line],
    )


def test_the_log_names_old_and_new(tagged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    args = tagged("en", "zh-Hans", "el", "old", "zh-Hant", "new", original_languages="en, zh-Hans")
    assert logged(args, monkeypatch) == (
        ["Data sets by language: old: a (en), b (zh-Hans), d; new: c (el), e (zh-Hant), f"],
        [],
    )
    args = tagged("en", "el", original_languages="en,es,zh", dataset="a", eval_dataset="b")
    warning = "original_languages names es, zh, but no data set is tagged so"
    assert logged(args, monkeypatch) == (["Data sets by language: old: a (en); new: b (el)"], [warning])
    assert logged(tagged("new"), monkeypatch) == (["Data sets by language: old: none; new: a"], [])
    assert logged(tagged("el", generate_lang_mask=False), monkeypatch) == ([], [])
