"""A study runs each step once, whatever stops it, and says what it found."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_studies import LORA, SPEC, Studies

from neuronmoe_plugins.steps import Program, start_process
from neuronmoe_plugins.study import running
from neuronmoe_plugins.study.trainings import load_trainings


def test_a_study_from_spec_to_results(studies: Studies) -> None:
    result = studies.run()

    assert result.exit_code == 0, result.output
    rows = studies.rows()
    # Of LoRA two rates with the first seed and the best one with the second; each with two stages and two texts.
    assert len(rows) == 2 + (3 + 1) * 2 * 2
    assert [(row["arm"], row["stage"], row["measure"], row["value"]) for row in rows[:2]] == [
        ("base", "base", "el", 2.0),
        ("base", "base", "en", 3.0),
    ]
    (seed2,) = [row for row in rows if (row["seed"], row["stage"], row["measure"]) == (2, "stage1", "el")]
    assert seed2 == {
        **{"arm": "lora-4", "method": "lora", "language": "el", "strategy": None, "new_experts": None},
        **{"rank": 4, "learning_rate": 0.002, "seed": 2, "best_learning_rate": True, "stage": "stage1"},
        **{"measure": "el", "of": "new language", "metric": "bits_per_byte", "value": pytest.approx(1.402)},
        **{"stderr": None, "added_parameters": 6, "trained_parameters": 1234},
        "file_bytes": Path("out/runs/lora-4/el_0.002_2/stage1/adapter_model.safetensors").stat().st_size,
    }
    assert {row["best_learning_rate"] for row in rows if row["arm"] == "lora-4" and row["learning_rate"] == 0.001} == {
        False
    }
    assert {(row["strategy"], row["new_experts"], row["rank"]) for row in rows if row["arm"] == "even"} == {
        ("uniform", 4, 4)
    }
    lines = [line.rpartition(" | ")[0] for line in Path("out/results.md").read_text().splitlines()]
    assert lines[0] == "| arm | language | stage | added parameters | learning rate | seeds | el | en"
    assert "| lora-4 | el | stage2 | 6 | 0.002 | 2 | 1.201 ± 0.001 | 2.201 ± 0.001" in lines[4]
    assert "lora-4" in result.output
    assert "Wrote out/report.html, and results.parquet, documents.parquet and results.md" in result.output
    # What lm-eval adds up over the documents is what the documents have.
    sums: dict[tuple[Any, ...], list[float]] = {}
    key = ("arm", "language", "learning_rate", "seed", "stage", "measure")
    for row in pq.read_table("out/documents.parquet").to_pylist():
        total = sums.setdefault(tuple(row[name] for name in key), [0.0, 0.0, 0.0])
        assert row["document"] == total[2]
        total[:] = total[0] - row["log_likelihood"], total[1] + row["bytes"], total[2] + 1
    found = {place: total / size / math.log(2) for place, (total, size, _) in sums.items()}
    assert found == {tuple(row[name] for name in key): pytest.approx(row["value"]) for row in rows}
    assert {count for _, _, count in sums.values()} == {3}


def test_without_its_file_an_adapter_has_the_parameters_that_its_arm_says(studies: Studies) -> None:
    studies.run(**LORA)
    for file in [*Path("out/runs").rglob("*.safetensors"), *Path("out/runs").rglob("stage?.log")]:
        file.unlink()
    assert studies.run(**LORA).exit_code == 0

    (lora,) = [own for own in load_trainings(studies.folder / "spec.yaml", Path("out")) if not own.is_base]
    assert lora.parameters is not None and lora.parameters > 100
    kinds = ("added_parameters", "trained_parameters", "file_bytes")
    sizes = {tuple(row[kind] for kind in kinds) for row in studies.rows() if row["arm"] != "base"}
    assert sizes == {(lora.parameters, None, None)}


def test_both_stages_are_told_what_differs(studies: Studies) -> None:
    arms = {"lora-4": SPEC["arms"]["lora"] | {"rank": 4}, "even": SPEC["arms"]["even"] | {"seeds": 7}}
    arms["once"] = arms["lora-4"] | {"stage2": False}
    studies.run(learning_rates=0.001, seeds=7, training={"cutoff_len": 64}, arms=arms)

    def told(arm: str, stage: str) -> dict:
        return json.loads(Path(f"out/runs/{arm}/el_0.001_7/{stage}/told.json").read_text())

    first, second = told("lora-4", "stage1"), told("lora-4", "stage2")
    for stage, data in ((first, "el_train"), (second, "en_replay,el_train")):
        assert (stage["finetuning_type"], stage["dataset"], stage["learning_rate"]) == ("lora", data, 0.001)
        assert (stage["seed"], stage["cutoff_len"], stage["weight_decay"]) == (7, 64, 0.0)
        assert not any("moe" in key or key in ("topk", "lpr_loss_coef") for key in stage)
    assert (first["lora_rank"], first["lora_alpha"], first["lora_target"], first["max_steps"]) == (4, 8, "up_proj", 4)
    assert second["adapter_name_or_path"] == str(Path("out/runs/lora-4/el_0.001_7/stage1").resolve())
    first, second = told("even", "stage1"), told("even", "stage2")
    assert (first["ada_moe_num_experts_list"], first["moe_expert_rank"], first["learning_rate"]) == ([2] * 4, 4, 0.001)
    assert (second["train_only_router"], second["learning_rate"], second["lpr_loss_coef"]) == (True, 0.005, 0.1)
    assert [row["stage"] for row in studies.rows() if row["arm"] == "once"] == ["stage1"] * 2
    assert sorted(path.name for path in Path("out/runs/once/el_0.001_7").glob("stage*.yaml")) == ["stage1.yaml"]


def test_a_study_that_was_stopped_gives_the_same_results(studies: Studies) -> None:
    small = {"stage2": None, "learning_rates": 0.001, "arms": {"lora": SPEC["arms"]["lora"] | {"rank": [4, 8]}}}
    studies.trouble("if folder.parts[-3:-1] == ('lora-4', 'el_0.001_2'): sys.exit('ValueError: bad luck')")
    assert str(studies.run(**small).exception).startswith(
        "lora-4 el, learning rate 0.001, seed 2: `llamafactory-cli train` failed with exit code 1: ValueError: bad luck"
    )
    assert {(row["arm"], row["seed"]) for row in studies.rows()} == {
        *(("base", None), ("lora-4", 1), ("lora-8", 1), ("lora-8", 2))
    }
    studies.trouble()
    assert studies.run(**small).exit_code == 0
    assert [call.split()[0] for call in studies.calls()] == [
        *(f"lora-{rank}/el_0.001_{seed}/stage1" for rank, seed in ((4, 1), (4, 2), (8, 1), (8, 2), (4, 2))),
    ]

    assert studies.run(output="at-once", **small).exit_code == 0
    assert studies.rows("at-once") == studies.rows()
    studies.run(**small)
    assert len(studies.calls()) == 5 + 4


def test_several_runs_at_once_have_a_gpu_each(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    studies.trouble("time.sleep(0.2)")
    studies.run("--jobs", "2", environment={"CUDA_VISIBLE_DEVICES": "3,5"}, **LORA)

    calls = studies.calls()
    assert {call.split()[1] for call in calls} == {"3", "5"}
    assert {call.split()[0].split("/")[1] for call in calls[:2]} == {"el_0.001_1", "el_0.002_1"}
    assert len(calls) == 6


def test_a_training_that_diverges_fails_alone_and_rates_are_shown_apart_until_one_is_best(studies: Studies) -> None:
    studies.trouble("told['max_steps'] = float('nan') if told['learning_rate'] == 0.001 else 4")
    three = {"learning_rates": [0.001, 0.002, 0.004], "stage2": None, **LORA}
    said = str(studies.run(**three).exception)

    assert said.startswith("lora el, learning rate 0.001, seed 1: ") and "el is nan, not a finite number" in said
    lines = [line.split(" | ") for line in Path("out/results.md").read_text().splitlines()[3:]]
    assert [(line[4], line[6]) for line in lines] == [("0.002", "1.401"), ("0.004", "1.601")]


def test_an_interrupt_ends_what_runs_and_keeps_what_is_done(studies: Studies) -> None:
    studies.trouble("if '0.002' in str(folder): os.kill(os.getppid(), 2), time.sleep(30)")
    start = time.monotonic()
    result = studies.run(**LORA)

    assert time.monotonic() - start < 10
    assert "Interrupted: the same command goes on from what is done" in result.output
    assert {row["learning_rate"] for row in studies.rows()} == {None, 0.001}
    studies.trouble()
    assert studies.run(**LORA).exit_code == 0
    assert len(studies.calls()) == 2 + 1 + 4


def test_an_interrupt_ends_a_program_that_is_about_to_start(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(words: Sequence[str], *given: Any) -> Program:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return start_process(["sleep", "30"], *given)

    monkeypatch.setattr(running, "start_forked", lambda block, environment: start)
    before = time.monotonic()

    assert "Interrupted: the same command goes on from what is done" in studies.run(**LORA).output
    assert time.monotonic() - before < 10


def test_a_full_disk_ends_the_study_at_once(studies: Studies) -> None:
    studies.trouble(
        "folder.mkdir(parents=True), (folder / 'half').touch(); sys.exit('OSError: No space left on device')"
    )
    result = studies.run()

    assert "lora-4 el, learning rate 0.001, seed 1" in str(result.exception)
    assert "No space left on device" in str(result.exception)
    assert len(studies.calls()) == 1
    assert not Path("out/runs/lora-4/el_0.001_1/stage1").exists()
    assert [row["arm"] for row in studies.rows()] == ["base", "base"]


def test_a_dry_run_writes_nothing(studies: Studies) -> None:
    output = studies.run("--dry-run").output

    assert "3 arms, 5 runs: 0 done, 0 begun, 5 left, 0 stale" in output
    assert "stage1, stage2, evaluate-stage1, evaluate-stage2" in output
    assert not Path("out").exists() and not studies.calls()


def test_a_dry_run_says_how_long_it_takes_by_the_steps_that_are_done(studies: Studies) -> None:
    studies.run("--arms", "base")
    assert "are left" not in studies.run("--dry-run").output, "nothing is trained yet"
    studies.run("--arms", "lora-4")
    minutes = {"evaluate-base": 1000, "stage1": 60, "stage2": 30, "evaluate-stage1": 18, "evaluate-stage2": 12}
    for stamp in Path("out/runs").rglob("steps/*.json"):
        stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"minutes": minutes[stamp.stem]}))

    assert "one at a time, 2.0 hours are left" in studies.run("--dry-run").output, "of the one run of `even`"
    studies.run()
    assert "are left" not in studies.run("--dry-run").output


def test_single_arms_are_run_and_the_results_of_all_are_shown(studies: Studies) -> None:
    studies.run("--arms", "lora-4")
    studies.run("--arms", "even")

    assert {row["arm"] for row in studies.rows()} == {"base", "lora-4", "even"}
    assert str(studies.run("--arms", "lora").exception) == (
        "--arms: no arm is called lora; there are: base, lora-4, even"
    )


def test_a_task_that_is_not_there_ends_it_before_anything_is_trained(studies: Studies) -> None:
    result = studies.run(source=SPEC["source"] | {"tasks": ["no_such_task"]})

    assert "base el: `lm_eval run` failed with exit code 1: ValueError: Tasks not found: no_such_task" in str(
        result.exception
    )
    assert not studies.calls()


def test_an_arm_is_trained_on_a_model_of_its_own_which_is_measured_before(studies: Studies) -> None:
    shutil.copytree("model", "larger")
    own = {"model": "larger", "stage1": {"max_steps": 3}}
    arms = {"plain": SPEC["arms"]["even"], "own": SPEC["arms"]["even"] | own}
    result = studies.run(arms=arms, claims={"Own is better": {"better": "own", "than": ["base-larger"]}})

    assert result.exit_code == 0, result.exception
    assert [row["arm"] for row in studies.rows()[::2]] == ["base", "base-larger", *["plain"] * 2, *["own"] * 2]
    for arm, model, steps in (("plain", "model", 4), ("own", "larger", 3)):
        folder = Path(f"out/runs/{arm}/el_0.001_1").resolve()
        told = json.loads((folder / "stage1" / "told.json").read_text())
        assert (told["model_name_or_path"], told["max_steps"]) == (str(Path(model).resolve()), steps)
        for measured in (folder / "stage2_evaluation", Path(f"out/runs/base{'-larger' * (arm == 'own')}/el")):
            (file,) = measured.rglob("results_*.json")
            found = json.loads(file.read_text())["config"]["model_args"]["pretrained"]
            assert found == str(Path(model).resolve())
