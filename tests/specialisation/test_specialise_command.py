"""`neuronmoe specialise`: the tables that it prints, and bad input that ends in one line and loses nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neuronmoe_plugins.cli import main
from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions
from specialisation.extending import EXPERTS, save_adapter
from tuner.tiny import tiny_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def command(options: SpecialiseOptions, tmp_path: Path) -> list[str]:
    """With an output folder that holds an earlier result; later options replace earlier ones."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "specialisation.json").write_text("{}")
    corpora = [f"--corpus={spec}" for spec in options.corpora]
    names = [f"--model={options.model}", f"--adapter={options.adapter}", f"--output={output}"]
    return ["specialise", *names, *corpora, "--samples=24", "--min-sentences=5", "--device=cpu"]


def rows_of(table: str) -> list[list[str]]:
    """The cells of a printed table's lines, without frames."""
    lines = (re.split(r"[│┃]", line)[1:-1] for line in table.splitlines())
    return [[cell.strip() for cell in cells] for cells in lines if cells]


def test_prints_the_tables_of_the_paper(
    command: list[str],
    result: tuple[Specialisation, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forked_python: Path,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = subprocess.run(
        [forked_python / "python", "-m", "neuronmoe_plugins", *command], check=True, capture_output=True, text=True
    )
    found = Specialisation.load(tmp_path / "out")
    assert found == result[0]
    experts, routing = done.stdout.split("Tokens that chose an expert")
    assert "Neurons with an average precision of 0.9 or more" in experts
    assert done.stdout.rstrip().endswith(f"Wrote {tmp_path / 'out'}")
    header = rows_of(experts)[0]
    assert header == ["", "", "en", "", "el", "", "tr", ""] or header[2::2] == ["en", "el", "tr"]
    printed = {row[0]: row[1:] for row in rows_of(experts) if row[0].startswith("L")}
    assert list(printed)[:4] == ["L0 expert 0", "L0 expert 1", "L0 expert 2", "L2 expert 0"]
    for row in found.of("el"):
        cells = printed[f"L{row.layer} expert {row.expert}"]
        assert cells[0] == "128"
        assert cells[3:5] == [str(row.high_ap), f"{100 * row.high_ap / 128:.2f}"]
    lines = rows_of(routing)
    numbered = [i for i, row in enumerate(lines) if row[0].isdigit()]
    for i, row in zip(numbered, found.routing, strict=True):
        cells, below = lines[i], lines[i + 1]
        assert cells[:3] == [str(row.layer), row.language, f"{row.tokens:,}"]
        share, weight = f"{100 * row.expert_tokens[0] / row.tokens:.1f}", f"({row.mean_weights[0]:.2f})"
        assert (cells[3], below[3], cells[-1]) == (share, weight, f"{row.entropy:.3f}")


def test_warns_of_sentences_in_two_languages(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next(word.partition("en=")[2] for word in command if word.startswith("--corpus=en="))
    (tmp_path / "more.txt").write_text(Path(source).read_text(encoding="utf-8") + "\nOK 1\n", encoding="utf-8")
    two = [word for word in command if not word.startswith(("--corpus=tr=", "--corpus=el="))]
    run(monkeypatch, [*two, f"--corpus=de={tmp_path / 'more.txt'}"], 0)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1
    assert "sampled sentences are the same in en and de" in warnings[0]


def test_says_what_was_not_measured(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_python: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    program = [forked_python / "python", "-m", "neuronmoe_plugins"]
    done = subprocess.run([*program, *command, "--min-sentences=1000"], check=True, capture_output=True, text=True)
    printed = [row for row in rows_of(done.stdout) if row[0].startswith("L")]
    assert len(printed) == 9
    assert all(row[1:] == ["128", *["not measured", ""] * 3] for row in printed)
    assert {row["high_ap"] for row in json.loads((tmp_path / "out/specialisation.json").read_text())["experts"]} == {
        None
    }


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int) -> None:
    monkeypatch.setattr("sys.argv", ["neuronmoe", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code


def one_corpus(command: list[str], _: Path) -> list[str]:
    return [part for part in command if not part.startswith(("--corpus=el", "--corpus=tr"))]


def lora(command: list[str], folder: Path) -> list[str]:
    base = AutoModelForCausalLM.from_pretrained(model_of(command))
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["up_proj"])).save_pretrained(folder)
    return [*command, f"--adapter={folder}"]


def of_a_wider_model(command: list[str], folder: Path) -> list[str]:
    tiny_model(hidden_size=48, num_hidden_layers=4).save_pretrained(folder / "wide")
    return [*command, f"--adapter={save_adapter(folder / 'wide', folder / 'adapter', EXPERTS)}"]


def of_a_deeper_model(command: list[str], folder: Path) -> list[str]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
    tiny_model(**sizes).save_pretrained(folder / "deep")
    return [*command, f"--adapter={save_adapter(folder / 'deep', folder / 'adapter', 2)}"]


def with_nan(name: str) -> Callable[[list[str], Path], list[str]]:
    def change(command: list[str], folder: Path) -> list[str]:
        save_adapter(Path(model_of(command)), folder, [1, 1, 1, 3], topk=2)
        tensors = load_file(folder / WEIGHTS)
        (key,) = (key for key in tensors if name in key)
        tensors[key][-1] = float("nan")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return [*command, f"--adapter={folder}"]

    return change


def without_weights(command: list[str], folder: Path) -> list[str]:
    save_adapter(Path(model_of(command)), folder, [1, 1, 1, 3])
    (folder / WEIGHTS).unlink()
    return [*command, f"--adapter={folder}"]


def model_of(command: list[str]) -> str:
    return next(part.removeprefix("--model=") for part in command if part.startswith("--model="))


def also(*more: str) -> Callable[[list[str], Path], list[str]]:
    return lambda command, _: [*command, *more]


BAD: dict[str, tuple[Callable[[list[str], Path], list[str]], str]] = {
    "no mixture": (lora, "--adapter has no mixture of experts"),
    "one corpus": (one_corpus, "two languages"),
    "threshold 0": (also("--threshold=0"), "--threshold is 0.0"),
    "threshold above 1": (also("--threshold=1.5"), "--threshold is 1.5"),
    "missing": (also("--missing=mean"), "unknown --missing 'mean'; there are: drop, zero"),
    "compare": (also("--compare=expert"), "unknown --compare 'expert'; there is: base"),
    "min sentences": (also("--min-sentences=0"), "--min-sentences is 0"),
    "too many samples": (also("--samples=25"), "has 24 sentences, 25 were asked for"),
    "no adapter": (also("--adapter=no-adapter"), "--adapter no-adapter does not exist"),
    "no weights": (without_weights, "cannot be loaded"),
    "no model": (also("--model=no/such-model"), "--model no/such-model does not exist"),
    "a wider model's": (of_a_wider_model, "cannot be loaded: the file of the"),
    "a deeper model's": (of_a_deeper_model, "cannot be loaded: the file of the"),
    "NaN in an expert": (with_nan("moe_up_proj"), "layer 3 expert 2 up_proj, unit 0: the activation for "),
    "NaN in a router": (with_nan("moe_router"), "layer 3: the router gives "),
    "a file": (lambda command, folder: [*command, f"--output={model_of(command)}/config.json"], "is a file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_ends_in_one_line_and_loses_nothing(
    kind: str,
    command: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, message = BAD[kind]
    arguments = change(command, tmp_path_factory.mktemp("bad"))
    capsys.readouterr()
    run(monkeypatch, arguments, 2)
    printed = capsys.readouterr()
    *before, last = printed.err.splitlines()
    assert last.startswith("neuronmoe: error: ")
    assert message in last
    # Progress bars may have come before it.
    assert not [line for line in before if "Error" in line or "Traceback" in line or "error: " in line]
    assert "Wrote" not in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["specialisation.json"]
    assert (tmp_path / "out" / "specialisation.json").read_text() == "{}"


def test_bad_input_leaves_no_new_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, [*command, f"--output={tmp_path / 'new'}", "--adapter=no-adapter"], 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_module_ends_with_exit_code_2(command: list[str]) -> None:
    arguments: list[Any] = [sys.executable, "-m", "neuronmoe_plugins", *command, "--threshold=0"]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "neuronmoe: error: --threshold is 0.0; an average precision is above 0 and at most 1\n"
