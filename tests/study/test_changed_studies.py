"""What has changed since a run was done is named, and done again when asked, with all that depends on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_studies import LORA, SPEC, Studies


def test_a_changed_spec_says_what_is_stale_and_does_it_again_when_asked(studies: Studies) -> None:
    studies.run(**LORA)
    before = studies.calls()

    result = studies.run(stage2={"max_steps": 3}, **LORA)
    assert str(result.exception) == (
        f"{studies.folder / 'spec.yaml'} has changed since these were done: lora el, learning rate 0.001, seed 1 "
        "(stage2); lora el, learning rate 0.002, seed 1 (stage2); add --force to do them again, or name another "
        "--output"
    )
    assert studies.calls() == before
    assert "1 done, 0 begun, 1 left, 2 stale" in studies.run("--dry-run", stage2={"max_steps": 3}, **LORA).output
    assert studies.run("--force", stage2={"max_steps": 3}, **LORA).exit_code == 0
    assert [call.split()[0].split("/")[-1] for call in studies.calls()[len(before) :]] == ["stage2"] * 3
    assert {round(row["value"], 3) for row in studies.rows() if row["seed"] == 2 and row["measure"] == "el"} == {
        1.402,
        1.302,
    }


def test_a_text_that_has_changed_is_measured_again_and_nothing_trained(studies: Studies) -> None:
    studies.run(**LORA)
    before = studies.calls()
    Path("el.jsonl").write_text('{"text": "another"}\n')

    assert "lora el, learning rate 0.001, seed 1 (evaluate-stage1)" in str(studies.run(**LORA).exception)
    assert studies.run("--force", **LORA).exit_code == 0
    assert len(studies.calls()) == len(before)


def test_variables_that_may_change_a_number_make_runs_stale(studies: Studies) -> None:
    small = {"learning_rates": 0.001, "seeds": 1, "stage2": None, **LORA}
    studies.run(environment={"TF32": 1, "HF_HOME": "a"}, **small)
    assert studies.run(environment={"TF32": 1, "HF_HOME": "b", "OMP_NUM_THREADS": 1}, **small).exit_code == 0
    assert len(studies.calls()) == 1

    said = str(studies.run(environment={"TF32": 0, "HF_HOME": "a"}, **small).exception)
    assert "these were done: base el (evaluate-base); lora el, learning rate 0.001, seed 1 (stage1)" in said


def test_a_stage_that_is_done_again_keeps_nothing_of_before(studies: Studies) -> None:
    small = {"learning_rates": 0.001, "seeds": 1, "stage2": None, **LORA}
    studies.run(**small)
    of_another_method = Path("out/runs/lora/el_0.001_1/stage1/adapter_config.json")
    of_another_method.touch()

    assert studies.run("--force", **small | {"stage1": {"max_steps": 5}}).exit_code == 0
    assert not of_another_method.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_of_an_arm_that_has_changed_makes_its_runs_stale(studies: Studies, name: str) -> None:
    shutil.copytree("model", "larger")
    arms = {"plain": SPEC["arms"]["even"], "own": SPEC["arms"]["even"] | {"model": "larger"}}
    changed = Path("larger", name)
    if name != "config.json":
        changed.write_bytes(b"as many bytes: 0")
    studies.run(arms=arms)
    # Weights of equal size, as of a model that was trained on in its folder, are other weights.
    old, new = ("{", '{"vocab_size": 100, ') if name == "config.json" else ("bytes: 0", "bytes: 1")
    changed.write_text(changed.read_text().replace(old, new, 1))

    said = str(studies.run(arms=arms).exception)

    assert "has changed since these were done: base-larger el (evaluate-base); own el, learning rate 0.001" in said
