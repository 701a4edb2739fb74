"""What pyproject.toml cannot say of the build: the wheel holds the folders that a checkout has beside the package, and
the README that a package index shows has no link that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

SHARED = ("lm_eval_tasks", "recipes")
# What was fetched, which has licences of its own, and what writes these folders' files in a checkout.
LEFT_OUT = re.compile(r"/probes/data/|/__pycache__/|/generate\w*\.py$|\.csv$")
RELATIVE_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)")


class BuildWithShared(build_py):
    """Copies the folders to where `neuronmoe_plugins.files.shared_folder` looks first."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they are found where they lie
            return
        for file in (file for folder in SHARED for file in sorted(Path(folder).rglob("*")) if file.is_file()):
            if not LEFT_OUT.search(file.as_posix()):
                target = Path(self.build_lib, "neuronmoe_plugins", "share", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


class InfoWithWholeLinks(egg_info):
    """Describes the package by a README whose links hold where no file is beside it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        metadata = self.distribution.metadata
        source = (metadata.project_urls or {}).get("Source")
        metadata.long_description = with_whole_links(metadata.long_description, source)


def with_whole_links(readme: str, source: str | None) -> str:
    """Put a repository's address before relative links; without one, name their files and leave pictures out."""

    def whole(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if source is not None:
            return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/main/{path})"
        return "" if picture else text if text == path else f"{text} (`{path}`)"

    return RELATIVE_LINK.sub(whole, readme)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithShared, "egg_info": InfoWithWholeLinks})
