"""The probes with a real model: the command that a user types, and the same numbers from every batch size."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from probes_data import QUESTION_TASKS, TASKS_DIR, TEXT_TASKS, make_questions, probe_tasks, write_probes

from forking.commands import commands_environment


def run_lm_eval(model_dir: Path, tasks: str, forked: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process."""
    model_args = f"pretrained={model_dir},dtype=float32,add_bos_token=False"
    command = ["python", "-m", "lm_eval", "run", "--model", "hf", "--model_args", model_args, "--device", "cpu"]
    command += ["--include_path", str(TASKS_DIR), "--tasks", tasks, *options]
    environment = {**commands_environment(forked), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def likelihood(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """ln P(" choice" | prompt), by transformers alone."""
    import torch

    prompt_ids, choice_ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f" {choice}"))
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt_ids + choice_ids])).logits[0].log_softmax(-1)
    positions = range(len(prompt_ids) - 1, len(prompt_ids) + len(choice_ids) - 1)
    return sum(logprobs[position, i].item() for position, i in zip(positions, choice_ids, strict=True))


def expected_scores(model_dir: Path) -> tuple[float, float]:
    """`acc` and `acc_norm` of `exams_hu`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    right, right_norm = [], []
    for question in make_questions("exams_hu"):
        prompt = f"Kérdés: {question['question']}\nVálasz:"
        scores = [likelihood(model, tokenizer, prompt, choice) for choice in question["choices"]]
        norms = [score / len(choice) for score, choice in zip(scores, question["choices"], strict=True)]
        right.append(scores.index(max(scores)) == question["answer"])
        right_norm.append(norms.index(max(norms)) == question["answer"])
    return sum(right) / len(right), sum(right_norm) / len(right_norm)


def test_command_takes_the_data_and_a_text_by_metadata(tiny_model_dir: Path, tmp_path: Path, forked: Path) -> None:
    write_probes(tmp_path / "data")
    for code, text in (("el", "Μία πρόταση.\n"), ("en", "One sentence.\n" * 9)):
        (tmp_path / f"{code}.txt").write_text(text, encoding="utf-8")
    metadata = json.dumps({"probes_dir": str(tmp_path / "data"), "text_file": str(tmp_path / "{language}.txt")})
    tasks = "exams_hu,bits_per_byte_el,bits_per_byte_en"
    done = run_lm_eval(
        tiny_model_dir, tasks, forked, "--metadata", metadata, "--log_samples", "--output_path", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (results_file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(results_file.read_text(encoding="utf-8"))["results"]
    assert (results["exams_hu"]["acc,none"], results["exams_hu"]["acc_norm,none"]) == expected_scores(tiny_model_dir)
    (samples_file,) = (tmp_path / "out").rglob("samples_bits_per_byte_el_*.jsonl")
    assert [json.loads(line)["target"] for line in samples_file.open(encoding="utf-8")] == ["Μία πρόταση."]
    assert results["bits_per_byte_el"]["bits_per_byte,none"] != results["bits_per_byte_en"]["bits_per_byte,none"]


def test_command_names_what_is_missing(tiny_model_dir: Path, tmp_path: Path, forked: Path) -> None:
    metadata = json.dumps({"probes_dir": str(tmp_path)})
    done = run_lm_eval(tiny_model_dir, "capitals_el", forked, "--metadata", metadata)
    assert done.returncode == 2
    command = f"python {TASKS_DIR / 'fetch_probes.py'} --output {tmp_path}"
    expected = f"lm_eval: error: {tmp_path / 'capitals_el.jsonl'} is missing: run `{command}`"
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr


def evaluate(model_dir: Path, probes_dir: Path, batch_size: int) -> dict[str, list[float]]:
    """Task -> log-likelihoods of all its requests, and its scores."""
    output = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model_dir), "dtype": "float32"},
        device="cpu",
        batch_size=batch_size,
        tasks=["neuronmoe_probes"],
        task_manager=probe_tasks(probes_dir=str(probes_dir)),
    )
    assert output is not None
    values = {}
    for task, samples in output["samples"].items():
        resps = [resp for sample in samples for resp in sample["filtered_resps"]]
        values[task] = [resp if isinstance(resp, float) else resp[0] for resp in resps]
        scores = output["results"][task]
        values[task] += [scores[name] for name in scores if name.endswith(",none") and "stderr" not in name]
    return values


def test_batch_size_changes_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    one, eight = (evaluate(tiny_model_dir, write_probes(tmp_path / "data"), size) for size in (1, 8))
    assert one.keys() == eight.keys() == {*QUESTION_TASKS, *TEXT_TASKS}
    for task, values in one.items():
        assert values == pytest.approx(eight[task], rel=1e-5), task
    assert len({tuple(values) for values in one.values()}) == len(one)
