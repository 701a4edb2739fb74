r"""How many of a language's neurons are its script's? The same texts in Latin letters say it.

    pip install anyascii
    texts=runs/languages/texts/analysis
    python studies/script_control.py latin $texts/el.jsonl runs/languages/el-Latn.jsonl
    for el in $texts/el.jsonl runs/languages/el-Latn.jsonl; do
        neuronmoe analyze --model runs/demo/model --corpus en=$texts/en.jsonl --corpus tr=$texts/tr.jsonl \
            --corpus hu=$texts/hu.jsonl --corpus el=$el --samples 100 --max-tokens 64 \
            --output runs/$(basename $el .jsonl)
    done
    python studies/script_control.py survivors runs/el runs/el-Latn --language el

So, too, with --metric attribution.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_texts, writing
from neuronmoe_plugins.neurons.analysis import Analysis

app = typer.Typer()
Place = tuple[int, str, int]


@app.command()
def latin(texts: Path, output: Path) -> None:
    """Write JSON lines with a field `text` in Latin letters without accents."""
    from anyascii import anyascii

    if output.exists():
        raise UserError(f"{output} is there already; delete it, or name another file")
    try:
        given = texts.read_text(encoding="utf-8").split("\n")  # splitlines() would also split inside a text
        lines = [json.loads(line)["text"] for line in given if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{texts} is not a file of JSON lines with a field text ({error})") from error
    with writing(str(output)):
        write_texts(output, map(anyascii, lines))


@app.command()
def survivors(one: Path, other: Path, language: Annotated[str, typer.Option(help="In both analyses.")]) -> None:
    """Say how many neurons of a language two analyses have in common, and in which layers each has them."""
    found = [_neurons(folder, language) for folder in (one, other)]
    typer.echo(f"{len(found[0] & found[1])} of {len(found[0])} neurons of {language} are in both")
    for folder, places in zip((one, other), found, strict=True):
        counts = Counter(layer for layer, _, _ in places)
        typer.echo(f"{folder}: {' '.join(str(counts[layer]) for layer in range(max(counts, default=-1) + 1))}")


def _neurons(folder: Path, language: str) -> set[Place]:
    analysis = Analysis.load(folder)
    if language not in analysis.summary["languages"]:
        raise UserError(f"{folder} has no {language}; it has {', '.join(analysis.summary['languages'])}")
    return {(each.layer, each.module, each.unit) for each in analysis.neurons if each.language == language}


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        typer.echo(f"script_control.py: error: {error}", err=True)
        sys.exit(2)
