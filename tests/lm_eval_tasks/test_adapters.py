"""A `moe` adapter in lm-eval, in every way that lm-eval runs a model, and how its command ends on bad input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking.commands import TOOLS, commands_environment

TASKS_DIR = Path(__file__).parents[2] / "lm_eval_tasks"
TASKS = ("arc_el", "hellaswag_el")
# lm-eval shares the questions out where it counts several GPUs; the devices are accelerate's choice.
TWO_GPUS = (
    "import torch; torch.cuda.device_count = lambda: 2; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(hub: Path, tmp_path: Path, forked: Path) -> Run:
    """Runs the command where the data sets lie."""

    def start(launcher: list[str], model_args: str, *words: str, tasks: str = ",".join(TASKS)) -> Any:
        command = [*launcher, "--model", "hf", "--model_args", model_args, "--device", "cpu"]
        command += ["--include_path", str(TASKS_DIR), "--tasks", tasks, "--output_path", str(tmp_path), *words]
        settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
        environment = commands_environment(forked) | settings
        return subprocess.run(command, env=environment, cwd=hub, capture_output=True, text=True, timeout=300)

    return start


def likelihoods(output: Path) -> dict[str, list[float]]:
    """Of every choice of every question, by task, from the only samples file of each in the folder."""
    values = {}
    for task in TASKS:
        (samples,) = output.rglob(f"samples_{task}_*.jsonl")
        rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        values[task] = [float(response[0]) for row in rows for response in row["filtered_resps"]]
    return values


@pytest.fixture(scope="module")
def expected(tiny_model_dir: Path, adapter_dir: Path, hub: Path) -> dict[str, list[float]]:
    """The same from transformers and peft alone, one choice at a time."""
    import peft
    import torch
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model, tokenizer = (
        peft.PeftModel.from_pretrained(base, adapter_dir).eval(),
        AutoTokenizer.from_pretrained(base.name_or_path),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        tasks = TaskManager(include_path=str(TASKS_DIR), include_defaults=False).load(list(TASKS))["tasks"]
    values: dict[str, list[float]] = {}
    for name, task in tasks.items():
        for document in task.eval_docs:
            prompt = tokenizer(task.doc_to_text(document)).input_ids
            for choice in task.doc_to_choice(document):
                answer = tokenizer(f" {choice}", add_special_tokens=False).input_ids
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
                chosen = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
                values.setdefault(name, []).append(float(chosen.sum()))
    return values


LAUNCHERS = {
    "batch auto": (["lm_eval"], "", ("--batch_size", "auto")),
    "parallelize": (["lm_eval"], ",parallelize=True,max_cpu_memory=4GiB", ("--batch_size", "4")),
    "two processes": (["torchrun", "--nproc_per_node", "2", "--no_python", "python", "-c", TWO_GPUS], "", ()),
}


@pytest.mark.parametrize(("launcher", "more_args", "words"), LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_likelihoods_are_those_of_peft_alone(
    launcher: list[str],
    more_args: str,
    words: tuple[str, ...],
    run: Run,
    expected: dict[str, list[float]],
    tiny_model_dir: Path,
    adapter_dir: Path,
    tmp_path: Path,
) -> None:
    done = run(launcher, f"pretrained={tiny_model_dir},peft={adapter_dir}{more_args}", "--log_samples", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("on rank 1" in done.stderr) == (launcher[0] == "torchrun"), "two processes have to share the questions"
    found = likelihoods(tmp_path)
    for task in TASKS:
        assert found[task] == pytest.approx(expected[task], rel=1e-4), task


def test_a_fork_finds_the_numbers_of_a_fresh_process(
    run: Run, tiny_model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    found = []
    for program in ("lm_eval", str(TOOLS / "lm_eval")):
        output = tmp_path / str(len(found))
        words = ("--log_samples", "--output_path", str(output))
        done = run([program], f"pretrained={tiny_model_dir},peft={adapter_dir}", *words)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(likelihoods(output))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_experts_have_the_dtype_that_was_asked_for(dtype: str, tiny_model_dir: Path, adapter_dir: Path) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(tiny_model_dir), peft=str(adapter_dir), dtype=dtype, device="cpu").model
    experts = {name: value.dtype for name, value in model.named_parameters() if ".moe_" in name}
    assert len(experts) == 8
    assert set(experts.values()) == {getattr(torch, dtype)}


def test_an_export_of_the_own_architecture_is_a_model_like_any(
    tiny_model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from neuronmoe_plugins.export.export import export
    from neuronmoe_plugins.export.request import ExportRequest

    export(ExportRequest(str(adapter_dir), tmp_path / "out", "neuronmoe", str(tiny_model_dir)))
    given = ({"pretrained": str(tmp_path / "out")}, {"pretrained": str(tiny_model_dir), "peft": str(adapter_dir)})
    models = [HFLM(device="cpu", batch_size=2, **each) for each in given]
    pairs = [("Η πρωτεύουσα είναι", " η Αθήνα."), ("The capital is", " Athens."), ("α", " β")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    exported, adapted = ([value for value, _ in model.loglikelihood(requests)] for model in models)
    assert exported == pytest.approx(adapted, rel=1e-4)
    assert models[0].max_length == models[1].max_length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 64}, "does not fit the model"),
        ({"num_hidden_layers": 6}, "num_experts has 4 entries, but 6 of the model's 6 layers"),
    ],
    ids=["other sizes", "other layers"],
)
def test_adapter_of_another_model_is_one_line(
    change: dict[str, int], message: str, run: Run, tiny_model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_model_dir)
    config.update(change)
    other = tmp_path / "other"
    LlamaForCausalLM(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(other)
    done = run(["lm_eval"], f"pretrained={other},peft={adapter_dir}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lm_eval: error: ")
    assert message in done.stderr.splitlines()[-1]


def test_adapter_of_another_model_of_the_same_shape(tiny_model_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from neuronmoe_plugins.errors import UserError

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.02)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "other")
    message = rf"one of {tiny_model_dir}, but {tmp_path}/other has other weights \(in model\.layers\.0\.mlp\.up_proj"
    with pytest.raises(UserError, match=message):  # which the command ends with, in one line
        HFLM(pretrained=str(tmp_path / "other"), peft=str(adapter_dir), device="cpu")


def test_task_without_its_data_is_one_line(run: Run, tiny_model_dir: Path) -> None:
    done = run(["lm_eval"], f"pretrained={tiny_model_dir}", tasks="xnli_el,neuronmoe_greek")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lm_eval: error: task xnli_el: cannot load its data set")


def test_unknown_group_is_named(run: Run, tiny_model_dir: Path) -> None:
    done = run(["lm_eval"], f"pretrained={tiny_model_dir}", tasks="neuronmoe_grek")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: Tasks not found: neuronmoe_grek"


def test_other_commands_end_as_lm_eval_lets_them(forked: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    command = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={tiny_model_dir}", "--tasks", "xnli_el"]
    environment = commands_environment(forked) | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    done = subprocess.run(
        ["python", *command, "--device", "cpu"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
