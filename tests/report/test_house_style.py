"""What all figures share: lines that can be told apart, text as it is, and the user's settings left alone."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from neuronmoe_plugins.figures import (
    blues,
    draw_layer_counts,
    house_style,
    new_figure,
    save_layer_figure,
    save_png,
    svg_text,
)
from neuronmoe_plugins.report.parts import inline_svg


def test_every_line_of_many_differs_and_its_name_is_no_formula() -> None:
    counts = {f"$x_{{{number}}}$": [number, 2 * number] for number in range(20)}
    with house_style():
        figure = draw_layer_counts(counts, "$y$ & <b>")
        drawn = svg_text(figure, "salt")
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(looks)) == 20
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == list(counts.values())
    assert ">$y$ &amp; &lt;b&gt;</text>" in drawn
    assert ">$x_{7}$</text>" in drawn


def test_a_users_settings_have_no_effect_and_stay(tmp_path: Path) -> None:
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        save_layer_figure(tmp_path / "odd.png", {"en": [1, 2]}, "title")
        assert matplotlib.rcParams["lines.linewidth"] == 9
    save_layer_figure(tmp_path / "plain.png", {"en": [1, 2]}, "title")
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_svg_repeats_and_depends_on_the_salt() -> None:
    def draw(salt: str) -> str:
        with house_style():
            return svg_text(draw_layer_counts({"en": [1, 2]}, "title"), salt)

    assert draw("a") == draw("a") != draw("b")
    assert "<dc:date>" not in draw("a")


def test_inline_svgs_of_two_figures_share_no_id() -> None:
    with house_style():
        document = svg_text(draw_layer_counts({"en": [1, 2]}, "title"), "salt")
    one, other = (set(inline_svg(document, name, "label").split('id="')[1:]) for name in ("one", "other"))
    ids = [{part.partition('"')[0] for part in parts} for parts in (one, other)]
    assert len(ids[0]) > 20
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("label", ["plain", "<b> & \"quoted\" 'too'"])
def test_inline_svg_is_one_element_with_its_label(label: str) -> None:
    from xml.etree import ElementTree

    with house_style():
        element = inline_svg(svg_text(new_figure(2, 1), "salt"), "name", label)
    root = ElementTree.fromstring(element)
    assert (root.tag, root.get("aria-label"), root.get("viewBox")) == ("svg", label, "0 0 144 72")
    assert {child.tag for child in root.iter()}.isdisjoint({"metadata", "style"})


def test_counts_get_darker_and_one_is_told_from_none() -> None:
    brightness = blues()(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) < 0).all()
    assert brightness[0] < 0.9


def test_a_failed_png_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    figure = new_figure(2, 1)
    save_png(figure, path)
    assert matplotlib.image.imread(path).shape == (150, 300, 4)

    def fill_the_disk(file: BinaryIO, **_: object) -> None:
        file.write(b"half")
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="no space"):
        save_png(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
