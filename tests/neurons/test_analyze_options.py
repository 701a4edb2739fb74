"""What the options of `neuronmoe analyze` do, on a tiny model: metrics, pooling, components, adapters, memory."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronmoe_plugins import AnalyzeOptions, analyze, hookimpl, parse_corpus_specs, plugins
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import arrays
from neuronmoe_plugins.neurons.analysis import Analysis, layer_counts
from neuronmoe_plugins.neurons.metrics import NeuronMetric


@pytest.fixture(scope="module")
def options(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AnalyzeOptions:
    folder = tmp_path_factory.mktemp("options")
    generator = random.Random(2)
    for language, letters in (("en", "abcdefgh "), ("el", "αβγδεζηθ ")):
        lines = ("".join(generator.choices(letters, k=generator.randint(4, 40))) + "." for _ in range(25))
        (folder / f"{language}.txt").write_text("\n".join(lines))
    specs = parse_corpus_specs([f"{language}={folder / language}.txt" for language in ("en", "el")])
    return AnalyzeOptions(str(tiny_model_dir), folder / "unused", specs, samples=20, top_n=60, device="cpu")


@pytest.fixture(scope="module")
def plain(options: AnalyzeOptions, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(replace(options, output=tmp_path_factory.mktemp("plain") / "out"))


def test_loads_as_it_was_returned(options: AnalyzeOptions, tmp_path: Path) -> None:
    analysis = analyze(replace(options, output=tmp_path / "out"))
    assert Analysis.load(tmp_path / "out") == analysis


def test_activations_can_stay_in_memory(
    options: AnalyzeOptions, plain: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 + 20 sentences of 896 neurons and 4 x 32 inputs are 0.000164 GB.
    monkeypatch.delattr(arrays.FileStore, "add")
    with pytest.raises(AttributeError, match="'FileStore' object has no attribute 'add'"):
        analyze(replace(options, output=tmp_path / "out", memory_limit=0.000160))
    assert analyze(replace(options, output=tmp_path / "out", memory_limit=0.000165)).neurons == plain.neurons


def test_model_can_be_spread_over_devices(options: AnalyzeOptions, plain: Analysis, tmp_path: Path) -> None:
    assert analyze(replace(options, output=tmp_path / "out", device="auto")).neurons == plain.neurons


def test_pooling_by_maximum_is_another_measure(options: AnalyzeOptions, plain: Analysis, tmp_path: Path) -> None:
    analysis = analyze(replace(options, output=tmp_path / "out", pooling="max"))
    assert analysis.summary["pooling"] == "max"
    assert analysis.neurons != plain.neurons


@pytest.mark.parametrize("component", ["attention", "mlp"])
def test_one_component_has_the_same_scores_as_in_both(options: AnalyzeOptions, tmp_path: Path, component: str) -> None:
    everything = replace(options, output=tmp_path / "both", top_n=10**6, min_score=0.0)
    both = analyze(everything)
    one = analyze(replace(everything, output=tmp_path / "one", components=[component]))
    expected = [n for n in both.neurons if n.module.startswith("mlp") == (component == "mlp")]
    assert sorted(one.neurons, key=str) == sorted(expected, key=str)
    assert one.summary["components"] == [component]
    assert set(one.summary["score_histogram"]["counts"]["en"]) == {component}


def test_identity_changes_the_counts_alone(options: AnalyzeOptions, plain: Analysis, tmp_path: Path) -> None:
    by_unit = analyze(replace(options, output=tmp_path / "out", neuron_identity="unit"))
    assert by_unit.neurons == plain.neurons
    for language in ("en", "el"):
        counts = by_unit.summary["layer_counts"][language]
        assert counts == layer_counts(by_unit.neurons, [language], 4, "unit")
        assert sum(counts) < sum(plain.summary["layer_counts"][language])


def test_summary_has_what_allocation_and_report_need(plain: Analysis, options: AnalyzeOptions) -> None:
    summary = plain.summary
    assert summary["hidden_size"] == 32
    assert summary["mlp_parameters"] == [3 * 32 * 48] * 4
    assert summary["attention_widths"] == [4 * 32 + (32 + 16 + 16 + 32)] * 4
    assert summary["attention_ranks"] == [16] * 4
    assert summary["module_components"]["self_attn.q_proj"] == "attention"
    assert summary["module_components"]["mlp.up_proj"] == "mlp"
    assert summary["unmeasured_modules"] == []
    similarity = np.array(summary["mlp_input_similarity"]["layers"])
    assert similarity.shape == (4, 2, 2)
    np.testing.assert_allclose(similarity, similarity.transpose(0, 2, 1), atol=1e-12)
    assert (similarity[:, 0, 1] < np.sqrt(similarity[:, 0, 0] * similarity[:, 1, 1])).all()
    assert set(summary["mlp_input_similarity"]["tokens"]) == {"en", "el"}
    histogram = summary["score_histogram"]
    units = {"attention": 4 * (32 + 16 + 16 + 32), "mlp": 4 * (48 + 48 + 32)}
    for language in ("en", "el"):
        assert {name: sum(bins) for name, bins in histogram["counts"][language].items()} == units
    assert len(histogram["edges"]) == 101


def test_lape_takes_the_activation_functions(options: AnalyzeOptions, tmp_path: Path) -> None:
    analysis = analyze(replace(options, output=tmp_path / "out", metric="lape", top_n=None))
    assert (analysis.summary["top_n"], analysis.summary["min_score"]) == (None, None)
    assert analysis.summary["units_per_module"] == {"mlp.act_fn": 48}
    # 1 % of 192 units
    assert 1 <= len({(n.layer, n.unit) for n in analysis.neurons}) <= 2
    assert analysis.summary["share"] == 0.01
    more = analyze(replace(options, output=tmp_path / "more", metric="lape", top_n=None, share=0.05))
    assert 3 <= len({(n.layer, n.unit) for n in more.neurons}) <= 10
    assert more.summary["share"] == 0.05
    assert all(n.module == "mlp.act_fn" and 0 <= n.score <= 1 for n in analysis.neurons)


def test_adapter_of_copies_changes_nothing_and_a_trained_one_does(
    options: AnalyzeOptions, plain: Analysis, tmp_path: Path
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from tuner.tiny import moe_config, randomised

    base = AutoModelForCausalLM.from_pretrained(options.model)
    fresh = peft.get_peft_model(base, moe_config(num_experts=[2, 1, 3, 2]))
    fresh.save_pretrained(tmp_path / "fresh")
    randomised(fresh).save_pretrained(tmp_path / "trained")
    same = analyze(replace(options, output=tmp_path / "a", adapter=str(tmp_path / "fresh")))
    assert {(n.language, n.layer, n.module, n.unit) for n in same.neurons} == {
        (n.language, n.layer, n.module, n.unit) for n in plain.neurons
    }
    assert same.summary["mlp_parameters"] == plain.summary["mlp_parameters"]
    trained = analyze(replace(options, output=tmp_path / "b", adapter=str(tmp_path / "trained")))
    assert trained.summary["adapter"] == str(tmp_path / "trained")
    assert [n for n in trained.neurons if n.layer == 3] != [n for n in plain.neurons if n.layer == 3]


class Contrast:
    """A plugin with both kinds of metrics: a function, and one with defaults of its own."""

    @hookimpl
    def register_metrics(self, register: Any) -> None:
        def contrast(pooled: np.ndarray, labels: np.ndarray, num_languages: int) -> np.ndarray:
            """Mean for a language over the overall mean."""
            means = [pooled[labels == language].mean(axis=0) for language in range(num_languages)]
            return np.array(means, dtype=np.float64) - pooled.mean(axis=0)

        register("contrast", contrast)
        register(
            "top-three", NeuronMetric(lambda p, s: contrast(p, s.labels, s.num_languages), top_n=3, min_score=None)
        )


@pytest.mark.parametrize(("metric", "expected"), [("contrast", 60), ("top-three", 3)])
def test_third_party_metric(options: AnalyzeOptions, tmp_path: Path, metric: str, expected: int) -> None:
    manager = plugins.plugin_manager()
    plugin = Contrast()
    manager.register(plugin)
    try:
        top_n = 60 if metric == "contrast" else None
        analysis = analyze(replace(options, output=tmp_path / "out", metric=metric, top_n=top_n, min_score=None))
    finally:
        manager.unregister(plugin)
    assert analysis.neurons_per_language()["el"] <= expected
    assert analysis.neurons_per_language()["el"] > 0
    assert analysis.summary["min_score"] == (0.5 if metric == "contrast" else None)
    # Scores outside 0..1 have a histogram too.
    assert analysis.summary["score_histogram"]["edges"][0] < 0
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(sum(bins) for bins in record["score_histogram"]["counts"]["en"].values()) == 896


WRONG = {
    "flat": (lambda pooled, labels, n: pooled.mean(axis=0), r"scores of shape \(32,\); it must give \(2, 32\)"),
    "transposed": (lambda pooled, labels, n: np.ones((pooled.shape[1], n)), r"scores of shape \(32, 2\)"),
    "nan": (lambda pooled, labels, n: np.full((n, pooled.shape[1]), np.nan), "numbers that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_third_party_metric_that_gives_something_else(options: AnalyzeOptions, tmp_path: Path, kind: str) -> None:
    class Plugin:
        @hookimpl
        def register_metrics(self, register: Any) -> None:
            register("wrong", WRONG[kind][0])

    manager, plugin = plugins.plugin_manager(), Plugin()
    manager.register(plugin)
    try:
        with pytest.raises(UserError, match=f"--metric wrong gives {WRONG[kind][1]}"):
            analyze(replace(options, output=tmp_path / "out", metric="wrong"))
    finally:
        manager.unregister(plugin)


def test_adapter_of_another_base_is_a_warning(options: AnalyzeOptions, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(options.model)
    base.name_or_path = "other/model"
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "lora")
    analysis = analyze(replace(options, output=tmp_path / "out", adapter=str(tmp_path / "lora")))
    assert analysis.warnings() == [f"the adapter says that it is for other/model, not for {options.model}"]
