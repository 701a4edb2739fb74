"""What the YAML files beside this one call: local data in place of a hub's data set, and the scores of a question."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from neuronmoe_plugins.corpora.texts import parse_json, require_text
from neuronmoe_plugins.errors import UserError

DATA = Path(__file__).parent / "data"
FETCH = f"python {shlex.quote(str(Path(__file__).parents[1] / 'fetch_probes.py'))}"
FIELDS = {"question", "choices", "answer"}

# A byte-level or byte-fallback tokenizer makes at most one token of a byte, so that a document of any language fits
# 2,048 tokens together with a token before it.
DOCUMENT_BYTES = 2_000


def load_questions(probe: str, probes_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions of a probe, from the file that `fetch_probes.py` wrote.

    Args:
        probe: Name of the file without `.jsonl`; the YAML names it.
        probes_dir: Folder of the data in place of the one beside the tasks, from `--metadata`.
        _: lm-eval's further metadata, such as the arguments of the model.

    Returns:
        Split `test`: `question`, `choices` (texts) and `answer` (index of the right choice).

    Raises:
        UserError: if the file is missing or is not one of `fetch_probes.py`, or if the folder is no string.
    """
    path = find_data(f"{probe}.jsonl", probes_dir)
    questions = list(read_json_lines(path))
    if not questions or not all(isinstance(question, dict) and question.keys() == FIELDS for question in questions):
        raise UserError(f"{path} is no file of questions: remove it and run `{FETCH}`")
    return {"test": Dataset.from_list(questions)}


def load_text(
    probe_language: str, text_file: str | None = None, probes_dir: str | None = None, **_: Any
) -> dict[str, Dataset]:
    """The documents of a text.

    Args:
        probe_language: Code of the language; the YAML names it.
        text_file: Path of the text, from `--metadata`; `{language}` in it stands for the code. Default: the Universal
            Declaration of Human Rights that `fetch_probes.py` wrote. In a `.jsonl` file the field `text` of every line
            is a document, other files are split by `split_documents`.
        probes_dir: Folder of the data in place of the one beside the tasks, from `--metadata`.
        _: lm-eval's further metadata, such as the arguments of the model.

    Returns:
        Split `test`: `text`, one document per row, none of them blank.

    Raises:
        UserError: if the file is missing, is not UTF-8 or has no text, or if a path is no string.
    """
    if text_file is None:
        path = find_data(f"udhr_{probe_language}.txt", probes_dir)
    else:
        text_file = require_text(text_file, "text_file in --metadata")
        path = Path(text_file.replace("{language}", probe_language)).expanduser()
    if path.suffix == ".jsonl":
        documents = [text for text in read_text_fields(path) if text.strip()]
    else:
        documents = split_documents(read_utf8(path))
    if not documents:
        raise UserError(f"{path} has no text")
    return {"test": Dataset.from_list([{"text": document} for document in documents])}


def split_documents(text: str) -> list[str]:
    """Join consecutive paragraphs to documents that fit a context.

    Args:
        text: A paragraph per line; blank lines and the blanks around a paragraph are dropped.

    Returns:
        Documents of at most `DOCUMENT_BYTES` UTF-8 bytes, with a line break between paragraphs. A longer paragraph is a
        document of its own, which lm-eval reads in windows.
    """
    documents: list[str] = []
    for line in text.split("\n"):  # splitlines() would also split inside a paragraph
        paragraph = line.strip()
        joined = f"{documents[-1]}\n{paragraph}" if documents else ""
        if paragraph and joined and len(joined.encode()) <= DOCUMENT_BYTES:
            documents[-1] = joined
        elif paragraph:
            documents.append(paragraph)
    return documents


def score_choices(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The scores of one question.

    Args:
        doc: The question.
        results: For every choice its log-likelihood in nats, and whether it is the greedy continuation.

    Returns:
        `acc`: 1 if the right choice is the most likely one; `acc_norm`: the same by log-likelihood per character, both
        as lm-eval has them; `chance`: the share of right answers of a guess.
    """
    likelihoods = [likelihood for likelihood, _ in results]
    per_character = [likelihood / len(choice) for likelihood, choice in zip(likelihoods, doc["choices"], strict=True)]
    return {
        "acc": float(likelihoods.index(max(likelihoods)) == doc["answer"]),
        "acc_norm": float(per_character.index(max(per_character)) == doc["answer"]),
        "chance": 1 / len(likelihoods),
    }


def find_data(name: str, probes_dir: str | None) -> Path:
    """The path of a file that `fetch_probes.py` writes; raises `UserError` if it is missing or the folder no string."""
    folder = DATA if probes_dir is None else Path(require_text(probes_dir, "probes_dir in --metadata")).expanduser()
    path = folder / name
    if not path.is_file():
        option = "" if probes_dir is None else f" --output {probes_dir}"
        raise UserError(f"{path} is missing: run `{FETCH}{option}`")
    return path


def read_text_fields(path: Path) -> Iterator[str]:
    for number, record in enumerate(read_json_lines(path), start=1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, document {number}: not a JSON object with a field 'text'")
        yield require_text(record.get("text"), f"{path}, document {number}: field 'text'")


def read_json_lines(path: Path) -> Iterator[Any]:
    """The value of every line that is not blank; raises `UserError` naming file and line."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            yield parse_json(line, f"{path}:{number}")


def read_utf8(path: Path) -> str:
    """The text of a file; raises `UserError` naming it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; convert the file to UTF-8") from error
