"""The page on the paper's counts: what it says, what each figure has, and that it needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from paper_analysis import COUNTS, TABLES, UNITS, read_page, save_paper_allocation, write_analysis

from neuronmoe_plugins.hookspecs import Register, hookimpl
from neuronmoe_plugins.plugins import plugin_manager
from neuronmoe_plugins.report.page import write_report
from neuronmoe_plugins.report.parts import Section

LANGUAGES = list(COUNTS)
# Title, axis labels and legend of every figure.
TEXTS = {
    "layers": [
        "Language-specific neurons in each decoder layer", "decoder layer", "language-specific neurons", *LANGUAGES,
    ],
    "allocation": [
        "49 experts in 28 layers for el, 84 with LayerMoE", "decoder layer", "experts",
        "cross-lingual neuron diversity", "neuron-diversity (allocation.yaml)",
        "LayerMoE (computed here, budget 70)", "distinct neurons of en, el",
    ],
    "overlap": ["Neurons that two languages share", "language", "shared neurons (count)", *LANGUAGES],
    "scores": [
        "Scores of all units of the model", "score (average precision)", "units", "attention", "mlp", "threshold 0.5",
        *LANGUAGES,
    ],
    "components": [
        "Neurons in each projection and layer", "decoder layer", "projection", "neurons (count)", *UNITS, *LANGUAGES,
    ],
    "similarity": [
        "Similarity of two languages in each decoder layer", "decoder layer", "mean cosine", "languages", "en – el",
        "tr – hu",
    ],
}  # fmt: skip


def section(page: Element, name: str) -> Element:
    return next(element for element in page.iter("section") if element.get("id") == name)


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def table(parent: Element, caption: str) -> list[list[str]]:
    """The table under that caption, or under that summary where it is folded."""
    for folded in parent.iter("details"):
        if folded[0].text == caption:
            return [[words(cell) for cell in row] for row in folded.iter("tr")]
    own = next(found for found in parent.iter("table") if words(found[0]) == caption)
    return [[words(cell) for cell in row] for row in own.iter("tr")]


@pytest.mark.parametrize("name", TEXTS)
def test_every_figure_is_real_text_with_title_axes_legend_caption_and_description(page: Element, name: str) -> None:
    figure = section(page, name).find("figure")
    assert figure is not None
    svg, caption = next(figure.iter("svg")), next(figure.iter("figcaption"))
    texts = [words(text) for text in svg.iter("text")]
    assert [text for text in TEXTS[name] if text not in texts] == []
    assert (svg.get("role"), svg.get("viewBox", "")[:4]) == ("img", "0 0 ")
    assert len(svg.get("aria-label", "")) > 60
    assert re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)*\.", words(caption)), "one sentence"


@pytest.mark.parametrize("name", TEXTS)
def test_figures_are_also_files(paper_run: Path, name: str) -> None:
    assert (paper_run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    svg = read_page(paper_run / "figures" / f"{name}.svg")
    assert TEXTS[name][0] in [words(text) for text in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_ids_are_unique_and_every_reference_is_met(page: Element) -> None:
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 300
    pairs = [pair for element in page.iter() for pair in element.attrib.items()]
    used = {value[1:] for name, value in pairs if name == "href" and value.startswith("#")}
    used |= {name for _, value in pairs for name in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {element.get("aria-labelledby", "") for element in page.iter("section")}
    assert len(used) > 30
    assert used <= set(ids)


def test_the_page_needs_nothing_but_itself(page: Element, paper_run: Path) -> None:
    assert not list(page.iter("script"))
    sources = [value for element in page.iter() for name, value in element.attrib.items() if name in ("src", "href")]
    assert {re.sub(r"[:#].*", "", source, flags=re.DOTALL) for source in sources} == {"", "data"}
    assert not re.search(r"https?://|@import|@font-face", (paper_run / "report.html").read_text(encoding="utf-8"))


def test_the_same_run_gives_the_same_bytes(paper_run: Path, tmp_path: Path) -> None:
    again = write_report(paper_run, tmp_path / "deep" / "page.html", layermoe_budget=70)
    assert again[0] == tmp_path / "deep" / "page.html"
    assert again[0].read_bytes() == (paper_run / "report.html").read_bytes()
    for path in again[1:]:
        assert path.read_bytes() == (paper_run / "figures" / path.name).read_bytes()


def test_tables_are_those_of_the_paper(page: Element) -> None:
    counted = table(section(page, "layers"), "Neurons per layer, in numbers")
    assert counted[0] == ["layer", *LANGUAGES]
    assert counted[1] == ["0", "322", "21", "8", "8"]
    assert counted[-1] == ["all", "974", "965", "990", "993"]
    experts = table(section(page, "allocation"), "Experts of each layer, in numbers")
    columns = list(zip(*experts[1:-1], strict=True))
    assert [int(cell) for cell in columns[1]] == TABLES["table5_unique_neurons_en_el"]
    assert [int(cell) for cell in columns[2]] == TABLES["table2_llama32_3b_greek"]["neuronmoe"]
    assert [int(cell) for cell in columns[3]] == TABLES["table2_llama32_3b_greek"]["layermoe"]
    assert experts[-1] == ["all", "", "49", "84", "1,585,539,072"]


def test_sizes_count_what_is_new(page: Element) -> None:
    experts = section(page, "allocation")
    sizes = table(experts, "What each allocation adds")
    # A new expert of Llama-3.2-3B has 3 x 3072 x 8192 parameters, and every expert of a mixture a router row of 3072.
    assert sizes[1] == ["allocation.yaml", "neuron-diversity", "en → el", "49", "21", "9", "1,585,539,072"]
    assert sizes[2][3:] == ["84", "56", "28", f"{56 * 3 * 3072 * 8192 + 84 * 3072:,}"]
    assert "experts −35 (−41.7 %), new experts −35 (−62.5 %)" in words(experts)


def test_languages_neurons_and_the_run_are_listed(page: Element) -> None:
    assert table(section(page, "overlap"), "Neurons per language")[1][:2] == ["en", "974"]
    best = table(section(page, "top"), "el: the best 20")
    assert best[0] == ["module", "layer", "unit", "score"]
    assert len(best) == 21
    assert best[1][3] >= best[20][3]
    run = section(page, "run")
    assert ["model", "meta-llama/Llama-3.2-3B"] in table(run, "Settings")
    assert ["torch", "2.13.0"] in table(run, "Versions")
    assert table(run, "Corpora")[2] == ["el", "corpora/el.jsonl", "0c0c0c0c0c0c", "18,889", "500", "3", "8"]


def test_what_comes_from_data_is_shown_and_never_run(tmp_path: Path) -> None:
    names = ["en<b>", "el&amp;$x_1$", '"tr"\'', "hu]]></script><script>alert(1)</script>"]
    model = "models/<img src=x onerror=alert(1)>"
    write_analysis(tmp_path / "analysis", languages=names, model=model, adapter="run/a & b")
    save_paper_allocation(tmp_path / "<i>.yaml")
    page = read_page(write_report(tmp_path)[0])
    assert {element.tag for element in page.iter()}.isdisjoint({"script", "b", "i", "img"} - {"image"})
    for name in names:
        assert words(section(page, "layers")).count(name) >= 2, "in the figure's legend and in the table"
    assert words(page.find("head/title")) == "<img src=x onerror=alert(1)> + a & b: language-specific neurons"
    assert "<i>.yaml" in words(section(page, "allocation"))
    assert ["model", model] in table(section(page, "run"), "Settings")


class Plugin:
    """Adds a section, and one that has nothing to say."""

    @hookimpl
    def register_report_sections(self, register: Register) -> None:
        register("a-note", lambda run: Section("A note", notes=[f"{run.num_layers} layers"]))
        register("nothing", lambda run: None)


def test_plugins_add_sections_after_ours(paper_run: Path, tmp_path: Path) -> None:
    manager = plugin_manager()
    manager.register(Plugin(), name="sections")
    try:
        page, *_ = write_report(paper_run, tmp_path / "report.html")
    finally:
        manager.unregister(name="sections")
    anchors = [part.partition('"')[0] for part in page.read_text(encoding="utf-8").split('<section id="')[1:]]
    before = (paper_run / "report.html").read_text(encoding="utf-8").split('<section id="')[1:]
    assert anchors == [*(part.partition('"')[0] for part in before), "a-note"]
    assert '<p class="note">28 layers</p>' in page.read_text(encoding="utf-8")
