"""The wheel: what it holds and says, and the README's path with it, where no checkout is."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.metadata import Metadata

from forking.commands import commands_environment, forked_commands

CHECKOUT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info")
BUILD = """
import os, sys, tarfile
from setuptools import build_meta
folder = sys.argv[1]
archive = os.path.join(folder, build_meta.build_sdist(folder))
tarfile.open(archive).extractall(folder, filter="data")
os.chdir(archive.removesuffix(".tar.gz"))
build_meta.build_wheel(folder)
"""
IMPORTED = [
    "llamafactory.train.tuner",
    "lm_eval.__main__",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "transformers.models.llama.modeling_llama",
    "indexed_tasks",
]
# As printed, a training takes 15,000 steps of 32 x 1,024 tokens.
SHORT = " max_steps=2 per_device_train_batch_size=2 cutoff_len=64"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source archive, and of the wheel that is built of what the archive holds."""
    folder = tmp_path_factory.mktemp("built")
    source = shutil.copytree(CHECKOUT, folder / "source", ignore=NOT_SOURCE)
    fetched = source / "lm_eval_tasks" / "probes" / "data"
    fetched.mkdir(exist_ok=True)
    (fetched / "exams_hu.jsonl").touch()
    done = subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_both_archives_hold_what_the_readme_names(built: Path, wheel: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        in_source = {name.partition("/")[2] for name in sources.getnames()}
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    tracked = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in ("lm_eval_tasks", "recipes")
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "probes/data/" not in path.as_posix()
    }
    assert len(tracked) > 180
    assert tracked | {"LICENSE", "README.md", "CHANGELOG.md", "docs/data.md", "setup.py"} <= in_source
    of_checkouts = {path for path in tracked if path.endswith(".csv") or "/generate" in path}
    shared = {name.partition("/share/")[2] for name in in_wheel if "/share/" in name}
    assert shared == tracked - of_checkouts
    assert {"lm_eval_tasks/fetch_probes.py", "recipes/deepspeed/zero3.json", "recipes/accelerate/fsdp.yaml"} <= shared
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in in_wheel)
    assert {path for path in in_wheel | in_source if path.endswith("exams_hu.jsonl")} == set()


def test_the_wheel_describes_itself_without_dead_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(files.read(name))  # raises where an index would refuse it
    assert metadata.description_content_type == "text/markdown"
    assert metadata.license_files == ["LICENSE"]
    assert "Programming Language :: Python :: 3.13" in (metadata.classifiers or [])
    assert "paper's (`recipes/data/paper.yaml`)" in (metadata.description or "")
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", metadata.description or "") == []


@pytest.fixture(scope="module")
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_script", CHECKOUT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "without", "whole"),
    [
        ("[more](docs/data.md#how)", "more (`docs/data.md#how`)", "[more](https://host/us/blob/main/docs/data.md#how)"),
        ("[LICENSE](LICENSE)", "LICENSE", "[LICENSE](https://host/us/blob/main/LICENSE)"),
        ("![A plot](docs/a.png)", "", "![A plot](https://host/us/raw/main/docs/a.png)"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
    ],
)
def test_links_get_the_address_of_the_repository(link: str, without: str, whole: str, build_script: ModuleType) -> None:
    assert build_script.with_whole_links(link, None) == without
    assert build_script.with_whole_links(link, "https://host/us") == whole


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and the hosts of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "hosts.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def commands(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wheel")
    with forked_commands(folder, IMPORTED, ["neuronmoe", "llamafactory-cli", "lm_eval"], installed) as commands:
        yield commands


def printed_path() -> list[str]:
    """The commands of the README's path, from the installation on."""
    (block,) = re.findall(
        r"```console\n(pip install neuronmoe-plugins .*?)```", (CHECKOUT / "README.md").read_text(), re.S
    )
    return [line for line in block.replace("\\\n", "").splitlines() if line][1:]


def save_texts(path: Path, alphabet: str, seed: int, count: int) -> None:
    """Texts of a made-up language."""
    random_ = random.Random(seed)
    words = ["".join(random_.choice(alphabet) for _ in range(random_.randint(2, 7))) for _ in range(40)]
    texts = [" ".join(random_.choice(words) for _ in range(5)) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def test_the_readmes_path_line_by_line(commands: Path, installed: Path, wide_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "M").symlink_to(wide_model_dir)
    (tmp_path / "data").mkdir()
    info = {}
    for language, alphabet, name in (("en", "abcdefghij", "en_replay"), ("el", "αβγδεζηθικ", "el_train")):
        # The analysis reads 500 sentences.
        for path, count in ((f"{language}.jsonl", 500), (f"heldout_{language}.jsonl", 9), (f"data/{name}.jsonl", 60)):
            save_texts(tmp_path / path, alphabet, count, count)
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}, "language": language}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    environment = commands_environment(commands) | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}

    def run(line: str) -> str:
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    tasks = Path(run("neuronmoe paths tasks").strip())
    assert tasks.is_relative_to(installed.parents[1])
    assert run("python -c 'import neuronmoe_plugins as ours; print(*ours.__path__)'").strip() == str(tasks.parents[1])
    said = {}
    for line in printed_path():
        said[line] = run(line.partition("  #")[0] + SHORT if line.startswith("llamafactory-cli") else line)
    assert {line.split()[0] for line in said} == {"neuronmoe", "llamafactory-cli", "lm_eval"}
    *_, comparison = said.values()
    assert "bits_per_byte_el" in comparison
    for made in ("report.html", "stage2/adapter_model.safetensors", "specialisation"):
        assert (tmp_path / "run" / made).exists(), made
    for name in ("base", "stage2"):
        (results,) = (tmp_path / "run" / "eval" / name).rglob("results_*.json")
        assert json.loads(results.read_text())["results"].keys() == {"bits_per_byte_el", "bits_per_byte_en"}
