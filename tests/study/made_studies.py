"""Studies, their spec, and stand-ins for the hosts' commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from click.testing import Result
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app

# LLaMA-Factory and lm-eval, as far as a study sees them: what they write follows from what they are told.
HOSTS = {
    "llamafactory-cli": """
import json, os, pathlib, sys, time
told = json.load(open(sys.argv[2]))
folder = pathlib.Path(told["output_dir"])
with open("calls", "a") as calls:
    calls.write("/".join(folder.parts[-3:]) + f" {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
exec(pathlib.Path("trouble").read_text() if pathlib.Path("trouble").exists() else "")
folder.mkdir(parents=True, exist_ok=True)
header = json.dumps({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
(folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
(folder / "told.json").write_text(json.dumps(told))
print("trainable params: 1,234 || all params: 5,678 || trainable%: 1.0")
(folder / "train_results.json").write_text("{}")
""",
    "lm_eval": """
import json, math, pathlib, sys
words = dict(zip(sys.argv[1:], sys.argv[2:]))
model = dict(pair.split("=") for pair in words["--model_args"].split(","))
tasks = words["--tasks"].split(",")
if "no_such_task" in tasks:
    sys.exit("ValueError: Tasks not found: no_such_task")
loss = 2.0
if "peft" in model:
    told = json.loads(pathlib.Path(model["peft"], "told.json").read_text())
    loss = 1 + abs(told["learning_rate"] - 0.002) * 100 + told["seed"] / 1000 + told["max_steps"] / 10
scores = {task: {"bits_per_byte,none": loss + place} for place, task in enumerate(tasks)}
folder = pathlib.Path(words["--output_path"], "model")
folder.mkdir(parents=True)
date = "2026-03-05T10-00-00.000001"
for task, own in scores.items():
    with folder.joinpath(f"samples_{task}_{date}.jsonl").open("w") as file:
        for number, more in enumerate((-0.2, 0.1, 0.1)):
            nats = -math.log(2) * 10 * (own["bits_per_byte,none"] + more)
            hashes = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), str(number))
            of_all = {"doc_id": number, "filter": "none", "metrics": ["bits_per_byte"], "bits_per_byte": [nats, 10]}
            file.write(json.dumps(of_all | hashes) + "\\n")
of_all = dict.fromkeys(tasks, 1)
folder.joinpath(f"results_{date}.json").write_text(json.dumps({
    "results": scores, "group_subtasks": {}, "configs": dict.fromkeys(tasks, {}), "versions": of_all, "n-shot": of_all,
    "higher_is_better": dict.fromkeys(tasks, {}), "n-samples": dict.fromkeys(tasks, {"effective": 1}),
    "config": {"model": "hf", "model_args": model}, "model_name": "model",
}))
""",
}
SPEC: dict[str, Any] = {
    "model": "model",
    "dataset_dir": "data",
    "source": {"language": "en", "texts": {"en": "en.jsonl"}},
    "targets": {"el": {"train": "el_train", "replay": "en_replay", "texts": {"el": "el.jsonl"}}},
    "learning_rates": [0.001, "2e-3"],
    "seeds": [1, 2],
    "stage1": {"max_steps": 4},
    "stage2": {"max_steps": 2},
    "arms": {
        "lora": {"method": "lora", "rank": [4], "target": "up_proj"},
        "even": {
            **{"method": "experts", "num_experts": 2, "expert_rank": 4, "learning_rates": 0.001, "seeds": 1},
            "stage2": {"learning_rate": 0.005},
        },
    },
}
LORA = {"arms": {"lora": SPEC["arms"]["lora"] | {"rank": 4}}}


@dataclass(frozen=True)
class Studies:
    """A folder with a model, texts and data sets, in which studies run."""

    folder: Path

    def write(self, **changes: Any) -> Path:
        """Write the spec, with these keys changed, and return its file."""
        path = self.folder / "spec.yaml"
        path.write_text(
            yaml.safe_dump(
                {key: value for key, value in (SPEC | changes).items() if value is not None}, sort_keys=False
            )
        )
        return path

    def run(self, *options: str, output: str = "out", **changes: Any) -> Result:
        """Run `neuronmoe study` on that spec."""
        arguments = ["study", str(self.write(**changes)), "--output", output, *options]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})

    def calls(self) -> list[str]:
        """What LLaMA-Factory was asked to train, and on which GPU, in order."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def rows(self, output: str = "out") -> list[Mapping[str, Any]]:
        """The results, without what differs from time to time."""
        rows = pq.read_table(self.folder / output / "results.parquet").to_pylist()
        return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows]

    def trouble(self, code: str = "") -> None:
        """Let LLaMA-Factory run this before it trains, or nothing."""
        (self.folder / "trouble").write_text(code)
