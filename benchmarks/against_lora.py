"""Low-rank experts and full copies beside PEFT's plain LoRA of as many parameters: what they learn, and what they keep.

On the demo's model and texts (`make demo` first, or its steps until the allocation), by the commands that a user has:
`llamafactory-cli train` for both stages and `lm_eval` for bits per byte. LoRA has no stage 2 of its own; it goes on
training on the same texts, so that what stage 2 gains is not that of more text. Every kind is trained with the first
seed at each learning rate, and then, at the one that is best in the new language after stage 2, with the other seeds.

What is done is not done again; several calls may share an output folder, each with its own kinds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.results import RESULTS, environment, write_result
from neuronmoe_plugins.demo.pipeline import ON_CPU, STAGE2, TRAINING
from neuronmoe_plugins.demo.texts import REPLAY, REVIEW, TRAIN
from neuronmoe_plugins.evaluation import write_tasks
from neuronmoe_plugins.files import read_json, write_json
from neuronmoe_plugins.steps import run_command

TEXTS = ("help_el", "udhr_el", "help_en", "udhr_en")
MLP = "gate_proj,up_proj,down_proj"
LEARNING_RATES = (2e-3, 1e-3, 4e-3)
SEEDS = (42, 43, 44)
THREADS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _lora(rank: int, target: str) -> dict[str, Any]:
    return {"finetuning_type": "lora", "lora_rank": rank, "lora_alpha": 2 * rank, "lora_target": target}


def _ranks(rank: int, num_experts: int = 2) -> dict[str, Any]:
    return {"finetuning_type": "moe", "moe_num_experts": num_experts, "moe_expert_rank": rank}


KINDS: dict[str, dict[str, Any]] = {
    "lora-16": _lora(16, MLP),
    "lora-64": _lora(64, MLP),
    "lora-256": _lora(256, MLP),
    "lora-all-64": _lora(64, "all"),
    "rank-16": _ranks(16),
    "rank-64": _ranks(64),
    "rank-256": _ranks(256),
    "ranks-16-4": _ranks(16, 5),
}
OF_MIXTURES = {"topk": 2, "aux_loss_coef": 0.01}
STAGE2_OF_MIXTURES = {"train_only_router": True, "lpr_loss_coef": 0.1, "generate_lang_mask": True, "topk": 2}


@dataclass(frozen=True)
class Run:
    """One training of both stages, and its evaluations.

    Attributes:
        kind: Key of `KINDS`.
        rate: Peak learning rate of stage 1.
        seed: Of LLaMA-Factory.
        folder: Of the run's stages.
    """

    kind: str
    rate: float
    seed: int
    folder: Path

    @property
    def is_mixture(self) -> bool:
        """Whether the method is `moe`."""
        return KINDS[self.kind]["finetuning_type"] == "moe"


def main() -> None:
    """Run what the command line asks for, and write what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="The demo's folder.")
    parser.add_argument("--runs", type=Path, default=Path("runs/against_lora"))
    parser.add_argument("--kinds", default="lora-64,rank-64")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, nargs=2, default=(40, 20), help="Of both stages, 1,024 tokens each.")
    parser.add_argument("--output", type=Path, default=RESULTS / "against_lora.json")
    options = parser.parse_args()
    for kind in options.kinds.split(","):
        first, *others = options.seeds
        results = {rate: measure(make_run(options, kind, rate, first), options) for rate in options.rates}
        best = min(results, key=lambda rate: results[rate]["stage2"]["help_el"] + results[rate]["stage2"]["udhr_el"])
        for seed in others:
            measure(make_run(options, kind, best, seed), options)
        write_result(
            {**environment("llamafactory", "lm-eval"), "steps": options.steps, "runs": list(all_results(options.runs))},
            options.output,
        )


def make_run(options: argparse.Namespace, kind: str, rate: float, seed: int) -> Run:
    """The run of a kind at a learning rate and a seed."""
    return Run(kind, rate, seed, (options.runs / f"{kind}_{rate:g}_{seed}").resolve())


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train both stages and evaluate each, as far as that is not done; the run's result."""
    result_file = run.folder / "result.json"
    if not result_file.is_file():
        demo, stages = options.demo.resolve(), ("stage1", "stage2")
        result: dict[str, Any] = {"kind": run.kind, "learning_rate": run.rate, "seed": run.seed}
        for stage, steps in zip(stages, options.steps, strict=True):
            if not (run.folder / stage / "train_results.json").is_file():
                train(run, demo, stage, steps)
            result[stage] = bits_per_byte(run, demo, stage)
        adapter = run.folder / "stage1" / "adapter_model.safetensors"
        result |= {"added_parameters": count(adapter), "adapter_bytes": adapter.stat().st_size}
        write_json(result_file, result)
    return read_json(result_file)


def train(run: Run, demo: Path, stage: str, steps: int) -> None:
    """One stage, in LLaMA-Factory."""
    options = {**TRAINING, **ON_CPU, "model_name_or_path": demo / "model", "stage": "pt", "do_train": True}
    options |= {"dataset_dir": demo / "texts/train", "dataset": TRAIN, "output_dir": run.folder / stage}
    options |= {"max_steps": steps, "learning_rate": run.rate, "lr_scheduler_type": "cosine", "seed": run.seed}
    options |= {"report_to": "none", "overwrite_output_dir": True, "save_strategy": "no", "logging_steps": 5}
    if stage == "stage1":
        options |= KINDS[run.kind] | (OF_MIXTURES if run.is_mixture else {})
    else:
        options |= {"dataset": f"{REPLAY},{REVIEW}", "adapter_name_or_path": run.folder / "stage1"}
        options["finetuning_type"] = KINDS[run.kind]["finetuning_type"]
        if run.is_mixture:
            options |= {**STAGE2_OF_MIXTURES, "learning_rate": STAGE2["learning_rate"]}
    recipe = run.folder / f"{stage}.yaml"
    write_json(recipe, {key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    run_command(["llamafactory-cli", "train", recipe], run.folder / f"{stage}.log", env={**THREADS})


def bits_per_byte(run: Run, demo: Path, stage: str) -> dict[str, float]:
    """Of the held-out texts, by lm-eval in float32."""
    output = run.folder / f"{stage}_evaluation"
    if not list(output.rglob("results_*.json")):
        tasks = write_tasks(run.folder / "tasks", {name: demo / f"texts/heldout/{name}.jsonl" for name in TEXTS})
        arguments = f"pretrained={demo / 'model'},peft={run.folder / stage},dtype=float32,max_length=512"
        run_command(
            [
                *("lm_eval", "run", "--model", "hf", "--model_args", arguments, "--batch_size", "1", "--device", "cpu"),
                *("--include_path", run.folder / "tasks", "--tasks", ",".join(tasks), "--output_path", output),
            ],
            run.folder / f"{stage}_evaluation.log",
            env={**os.environ, **THREADS},
        )
    results = read_json(next(output.rglob("results_*.json")))["results"]
    return {name: results[f"bits_per_byte_{name}"]["bits_per_byte,none"] for name in TEXTS}


def count(adapter: Path) -> int:
    """Values in an adapter's file."""
    with safe_open(adapter, "pt") as tensors:
        sizes = (tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118
        total = 0
        for shape in sizes:
            values = 1
            for size in shape:
                values *= size
            total += values
        return total


def all_results(runs: Path) -> Iterator[dict[str, Any]]:
    """Those of all finished runs in a folder, by kind, learning rate and seed."""
    return map(read_json, sorted(runs.glob("*/result.json")))


if __name__ == "__main__":
    main()
