"""What each key of `allocation.yaml` may hold."""

from __future__ import annotations

from neuronmoe_plugins.allocation.checks import Check, is_count, is_score, is_text, is_total, list_of, one_of, or_null

COUNTS = "a list of whole numbers, 1 or more, one per layer"


def _filled(check: Check) -> Check:
    return lambda value: bool(value) and check(value)


# Key of the file -> its check, and what an error says the value must be.
KEYS: dict[str, tuple[Check, str]] = {
    "num_experts": (_filled(list_of(is_count)), COUNTS),
    "total_experts": (is_total, "a whole number"),
    "added_parameters": (or_null(is_total), "a whole number or null"),
    "layer_scores": (list_of(is_score), "a list of numbers, zero or more"),
    "score_name": (is_text, "what a score is"),
    "strategy": (is_text, "the name of a strategy"),
    "source": (or_null(is_text), "a language (in quotes) or null"),
    "targets": (list_of(is_text), "a list of languages (in quotes)"),
    "min_experts": (is_count, "a whole number, 1 or more"),
    "max_experts": (or_null(is_count), "a whole number, 1 or more, or null"),
    "rounding": (or_null(one_of("floor", "round")), "floor, round or null"),
    "scale": (or_null(one_of("linear", "sqrt", "log")), "linear, sqrt, log or null"),
    "combine": (or_null(one_of("union", "mean")), "union, mean or null"),
    "neuron_identity": (or_null(one_of("module", "unit")), "module, unit or null"),
    "budget": (or_null(is_count), "a whole number, 1 or more, or null"),
    "requested_total_experts": (or_null(is_count), "a whole number, 1 or more, or null"),
    "max_added_parameters": (or_null(is_count), "a whole number, 1 or more, or null"),
    "hidden_size": (or_null(is_count), "a whole number, 1 or more, or null"),
    "mlp_parameters": (or_null(_filled(list_of(is_count))), f"{COUNTS}, or null"),
    "scores_from": (is_text, "a path"),
    "scores_sha256": (or_null(is_text), "a checksum (in quotes) or null"),
    "note": (or_null(is_text), "a text or null"),
}
