"""Places that cannot be written and paths that are not there: one line, at once, from every command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from allocations import save_allocation

HERE = Path(__file__).parent
BASE = "--model model"
ADAPTER = HERE / "data/moe_a/adapter"
CORPORA = "--corpus el=el.txt --corpus en=en.txt"
DATASETS = "--target-dataset el_train --replay-dataset en_replay --dataset-dir ."
HUB = r"does not exist: there is no such folder, nor is it in the hub's cache, and the hub cannot be asked \(HF_HUB"

# A command that writes, and how it names where.
WRITERS = {
    "data": ("data spec.yaml --output", "--output"),
    "analyze": (f"analyze {BASE} {CORPORA} --output", "--output"),
    "specialise": (f"specialise {BASE} --adapter {ADAPTER} {CORPORA} --output", "--output"),
    "prune": (f"prune {ADAPTER} {BASE} {CORPORA} --target el --output", "--output"),
    "recipe": (f"recipe {BASE} --allocation allocation.yaml {DATASETS} --output", "--output"),
    "convert": (f"convert {ADAPTER}", "OUT"),
    "compress": (f"compress {ADAPTER} --rank 2 --output", "--output"),
    "export": (f"export {ADAPTER} --output", "--output"),
    "study": ("study spec.yaml --output", "--output"),
    "graft": (f"graft --adapter {ADAPTER} --to {HERE / 'data/moe_a/base'} --output", "--output"),
    "demo": ("demo --output", "--output"),
    "allocate": ("allocate scores.json --output", "--output"),
    "figure": ("allocate scores.json --output a.yaml --figure", "--figure"),
    "report": ("report run --output", "--output"),
    "compare": ("compare results.json other.json --json", "--json"),
}
PLACES = {
    "a.txt/below/x.png": "cannot be written: a.txt: Not a directory",
    "/proc/x.png": "cannot be written: /proc: No such file or directory",
}
FILES = ("allocate", "figure", "report", "compare")
MISSING = {
    "data nix.yaml --output x": r"nix\.yaml cannot be read: No such file or directory",
    "study nix.yaml --output x": r"nix\.yaml cannot be read: No such file or directory",
    "data no_source.yaml --output x": r"el_train: source nix/\*\.txt: no file in .* matches",
    "data no_tokenizer.yaml --output x": rf"tokenizer: nix/model {HUB}",
    "data no_hub.yaml --output x": r"hub:nix/nix/nix@train does not exist: there is no such folder",
    "data no_path.yaml --output x": r"tokenizer: \./nix/model does not exist, and is no name on the Hugging Face Hub",
    f"analyze --model ./nix {CORPORA} --output x": r"--model \./nix does not exist, and is no name on",
    f"analyze --model nix {CORPORA} --output x": rf"--model nix {HUB}",
    f"analyze --model a.txt {CORPORA} --output x": r"--model a\.txt is a file; name the folder that has it",
    f"analyze --model {ADAPTER} {CORPORA} --output x": r"--model .*adapter has no config\.json; it is an adapter",
    f"analyze --model run {CORPORA} --output x": r"--model run has no config\.json$",
    f"analyze --model {HERE / 'data/moe_a/base'} {CORPORA} --output x": r"base has no tokenizer_config\.json; put",
    f"specialise {BASE} --adapter lora {CORPORA} --output x": r"--adapter has no mixture of experts; .*, not lora",
    f"analyze {BASE} {CORPORA} --adapter /nix/a --output x": r"--adapter /nix/a does not exist, and is no name on",
    f"analyze {BASE} --corpus el=nix.txt --corpus en=en.txt --output x": r"--corpus el=nix\.txt cannot be read: no",
    f"analyze {BASE} --corpus el=hub:./nix --corpus en=en.txt --output x": r"hub:\./nix@train does not exist: there is",
    f"analyze {BASE} --concepts nix --output x": r"--concepts nix is no folder",
    f"analyze {BASE} --data nix --output x": r"nix holds no data sets \(no manifest\.json\)",
    f"specialise {BASE} --adapter nix {CORPORA} --output x": rf"--adapter nix {HUB}",
    f"specialise --model ~/nix --adapter nix {CORPORA} --output x": r"--model ~/nix does not exist, and is no name on",
    f"prune nix {BASE} {CORPORA} --target el --output x": rf"ADAPTER nix {HUB}",
    f"prune lora {BASE} {CORPORA} --target el --output x": r"ADAPTER has no mixture of experts; .*, not lora",
    f"prune {ADAPTER} --model ./nix {CORPORA} --target el --output x": r"--model \./nix does not exist, and",
    f"prune {ADAPTER} {BASE} --data nix --output x": r"nix holds no data sets \(no manifest\.json\)",
    "allocate nix --output x.yaml": r"nix does not exist",
    "allocate scores.json --output x.yaml --compare nix": r"nix does not exist",
    "report nix": r"nix is no folder; name the one",
    "convert nix x": r"nix/adapter_config\.json does not exist; name the folder of an adapter",
    "compress nix --rank 2 --output x": r"nix/adapter_config\.json does not exist; name the folder of an adapter",
    f"compress {ADAPTER} --rank 2 --output x --model nix": rf"--model nix {HUB}",
    f"graft --adapter {ADAPTER} --to ./nix --output x": r"--to \./nix does not exist, and is no name on the Hugging",
    "export nix --output x": rf"ADAPTER nix {HUB}",
    "export lora --model ./nix --output x": r"--model \./nix does not exist, and is no name on",
    "compare nix other.json": r"nix does not exist",
    f"recipe --model ./nix --allocation allocation.yaml {DATASETS} --output x": r"--model \./nix does not exist, and",
    f"recipe --model run --allocation allocation.yaml {DATASETS} --output x": r"--model run has no config\.json$",
    f"recipe {BASE} --allocation nix.yaml {DATASETS} --output x": r"nix\.yaml does not exist; write it with",
    f"recipe {BASE} --allocation allocation.yaml {DATASETS} --output x": r"has 3 entries, but model has 4 layers;",
    f"recipe {BASE} --allocation allocation.yaml --data nix --output x": r"nix holds no data sets",
    f"recipe {BASE} --allocation allocation.yaml --target-dataset el --replay-dataset en --dataset-dir . --output x": (
        r"dataset_info\.json has no data set en; it has: el_train, en_replay"
    ),
}
RUN = """
import contextlib, io, json, sys
from neuronmoe_plugins.cli import main
answers = []
for words in json.load(sys.stdin):
    sys.argv[1:] = words
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    answers.append([code, told.getvalue(), [name for name in ("torch", "transformers", "peft") if name in sys.modules]])
print(json.dumps(answers))
"""


def spec(source: str, **top: Any) -> str:
    data = {"name": "el_train", "language": "el", "role": "target", "source": source, "documents": 1}
    return json.dumps({"seed": 1, "datasets": [data], **top})


def other_kind(writer: str) -> str:
    """A folder where a file is meant, or a file where a folder is."""
    return "run" if writer in FILES else "a.txt"


@pytest.fixture(scope="module")
def answers(named_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Command -> its exit code, its standard error, and what was imported until then; one process runs all."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "run").mkdir()
    (folder / "lora").mkdir()
    (folder / "lora/adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "model").symlink_to(named_model_dir)
    save_allocation(folder / "allocation.yaml", [3, 1, 2])
    info = {"el_train": {"file_name": "el.jsonl", "language": "new"}, "en_replay": {"language": "old"}}
    texts = {
        **dict.fromkeys(("a.txt", "el.txt", "en.txt"), "a\n"),
        "scores.json": json.dumps({"layer_scores": [1, 2, 3]}),
        "dataset_info.json": json.dumps(info),
        "spec.yaml": spec("el.txt"),
        "no_source.yaml": spec("nix/*.txt"),
        "no_tokenizer.yaml": spec("el.txt", tokenizer="nix/model"),
        "no_hub.yaml": spec("hub:nix/nix/nix"),
        "no_path.yaml": spec("el.txt", tokenizer="./nix/model"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    before = sorted(folder.rglob("*"))
    commands = [f"{start} {place}" for name, (start, _) in WRITERS.items() for place in (*PLACES, other_kind(name))]
    commands += MISSING
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=words, cwd=folder, check=True, capture_output=True, text=True
    )
    assert sorted(folder.rglob("*")) == before
    return {command: tuple(answer) for command, answer in zip(commands, json.loads(done.stdout), strict=True)}


def require_one_line(answer: tuple[int, str, list[str]], message: str) -> None:
    code, told, imported = answer
    assert (code, imported) == (2, [])
    assert re.fullmatch(rf"neuronmoe: error: .*{message}.*\n", told), told


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_that_cannot_be_written(writer: str, place: str, answers: dict[str, Any]) -> None:
    start, flag = WRITERS[writer]
    require_one_line(answers[f"{start} {place}"], re.escape(f"{flag} {place} {PLACES[place]}"))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_for_a_folder_and_a_folder_for_a_file(writer: str, answers: dict[str, Any]) -> None:
    start, flag = WRITERS[writer]
    place = other_kind(writer)
    message = "run is a folder; name a file" if place == "run" else "a.txt is a file; name a folder"
    require_one_line(answers[f"{start} {place}"], re.escape(f"{flag} {message}"))


@pytest.mark.parametrize("command", MISSING)
def test_a_path_that_is_not_there(command: str, answers: dict[str, Any]) -> None:
    require_one_line(answers[command], MISSING[command])
