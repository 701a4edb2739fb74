"""`neuronmoe recipe --data`: the data sets of each stage by their roles and the allocation's targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from allocations import make_allocation
from data_folders import Entry, save_data
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError

DATASETS: dict[str, Entry] = {
    "el_train": ("el", "target", ["α"]),
    "es_replay": ("es", "replay", ["n"]),
    "el_more": ("el", "target", ["β"]),
    "el_test": ("el", "held-out", ["γ"]),
    "tr_train": ("tr", "target", ["ç"]),
    "en_replay": ("en", "replay", ["a"]),
    "en_analysis": ("en", "analysis", ["b"]),
}


def run(
    folder: Path, targets: Sequence[str], *more: str, datasets: dict[str, Entry] = DATASETS, tokens: Any = None
) -> Result:
    """Run the command from a folder with data/ and an allocation for these targets."""
    save_data(folder / "data", datasets, tokens=tokens)
    replace(make_allocation([3, 1, 2]), targets=list(targets)).save(folder / "allocation.yaml")
    command = ["recipe", "--allocation", "allocation.yaml", "--model", "org/model", "--output", "run", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, command)


def stages(folder: Path) -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load((folder / "run" / f"stage{stage}.yaml").read_text()) for stage in (1, 2))


@pytest.mark.parametrize(
    ("targets", "learnt"),
    [
        (["el"], "el_train,el_more"),
        (["tr"], "tr_train"),
        (["tr", "el"], "el_train,el_more,tr_train"),
        ([], "el_train,el_more,tr_train"),
    ],
)
def test_roles_and_targets_choose_the_data_sets(tmp_path: Path, targets: list[str], learnt: str) -> None:
    result = run(tmp_path, targets, "--data", "data")
    assert result.exit_code == 0, (result.output, result.exception)
    stage1, stage2 = stages(tmp_path)
    assert stage1["dataset"] == learnt
    assert stage2["dataset"] == f"es_replay,en_replay,{learnt}"
    assert stage2["original_languages"] == "en,es"
    assert stage1["dataset_dir"] == stage2["dataset_dir"] == str(tmp_path / "data")


def test_is_the_recipe_of_the_same_names(tmp_path: Path) -> None:
    assert run(tmp_path, ["el"], "--data", "data").exit_code == 0
    written = stages(tmp_path)
    names = ["--target-dataset", "el_train,el_more", "--replay-dataset", "es_replay,en_replay", "--dataset-dir", "data"]
    assert run(tmp_path, ["el"], *names).exit_code == 0
    assert stages(tmp_path) == written


@pytest.mark.parametrize(
    ("tokens", "key", "value", "said"),
    [
        (
            100_101,
            "num_train_epochs",
            4.0,
            "Stage 1 has 4 epochs of 200,202 tokens, about 25 steps of 32 x 1,024 tokens on one process; the paper's "
            "15,000 steps of 32 x 1,024 tokens would be 2,455 epochs.",
        ),
        (
            122_880_000,
            "max_steps",
            15000,
            "Stage 1 has the paper's 15,000 steps of 32 x 1,024 tokens; on one process they are 2.0 epochs of "
            "245,760,000 tokens.",
        ),
        (None, "max_steps", 15000, "whatever is in the data sets: their tokens are not counted."),
    ],
)
def test_small_data_sets_are_gone_over_four_times(
    tmp_path: Path, tokens: int | None, key: str, value: object, said: str
) -> None:
    result = run(tmp_path, ["el"], "--data", "data", tokens=tokens)
    assert result.exit_code == 0, (result.output, result.exception)
    stage1, _ = stages(tmp_path)
    assert {name: stage1[name] for name in ("max_steps", "num_train_epochs") if name in stage1} == {key: value}
    assert said in result.output


def test_a_wrong_count_of_tokens_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, ["el"], "--data", "data", tokens="many")
    assert isinstance(result.exception, UserError)
    assert "datasets[0].tokens is 'many', not a number of tokens; run `neuronmoe data` again" in str(result.exception)


def without(*roles: str) -> dict[str, Entry]:
    return {name: entry for name, entry in DATASETS.items() if entry[1] not in roles}


@pytest.mark.parametrize(
    ("datasets", "targets", "message"),
    [
        (
            DATASETS,
            ["el", "hu", "de"],
            r"manifest\.json has no data set of role target for hu, de, which allocation\.yaml is for \(it has el, tr\)"
            "; add one to its specification and run `neuronmoe data` again$",
        ),
        (
            without("target"),
            ["el"],
            r"manifest\.json has no data set of role target, so there is nothing to learn; add",
        ),
        (without("target"), [], r"manifest\.json has no data set of role target, so"),
        (without("replay"), ["el"], r"manifest\.json has no data set of role replay, and stage 2 needs the languages"),
        ({**DATASETS, "el_old": ("el", "replay", ["δ"])}, ["el"], 'el_old is a replay data set, but its "language" is'),
        (
            {**DATASETS, "es_new": ("es", "target", ["ñ"])},
            [],
            'es_new is a target data set, but its "language" is "es"',
        ),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, datasets: dict[str, Entry], targets: list[str], message: str) -> None:
    result = run(tmp_path, targets, "--data", "data", datasets=datasets)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message) as caught:
        raise result.exception
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "data", "--dataset-dir", "data"], "--data data says what --dataset-dir says; leave one out"),
        (["--data", "data", "--target-dataset", "a"], "--data data says what --target-dataset says; leave one out"),
        (["--data", "data", "--replay-dataset", "a"], "--data data says what --replay-dataset says; leave one out"),
        (
            ["--replay-dataset", "en_replay"],
            "missing --target-dataset, --dataset-dir: name data sets and their folder, or pass --data DIR instead",
        ),
        (["--target-dataset", "a", "--dataset-dir", "data"], "missing --replay-dataset: name data sets"),
        (["--target-dataset", "a", "--replay-dataset", "b"], "missing --dataset-dir: name data sets"),
        (["--data", "gone"], "gone holds no data sets (no manifest.json)"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list[str], message: str) -> None:
    result = run(tmp_path, ["el"], *options)
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(message)
    assert not (tmp_path / "run").exists()


def test_dataset_info_of_the_folder_is_needed_too(tmp_path: Path) -> None:
    run(tmp_path, ["el"], "--data", "data")
    (tmp_path / "data" / "dataset_info.json").unlink()
    command = ["recipe", "--allocation", str(tmp_path / "allocation.yaml"), "--model", "m", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--data", str(tmp_path / "data")])
    assert "dataset_info.json does not exist; " in str(result.exception)
    assert str(result.exception).endswith("--data one that `neuronmoe data` wrote")
