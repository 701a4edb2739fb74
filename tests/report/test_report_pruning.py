"""The section on experts that were dropped: one pair of tables for each pruned adapter in the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paper_analysis import COUNTS

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.pruning import ExpertTrial, LanguageLoss, Pruning
from neuronmoe_plugins.report.page import SECTIONS
from neuronmoe_plugins.report.pruning_section import pruning_section
from neuronmoe_plugins.report.run import Run, read_run

PRUNING = Pruning(
    {"adapter": "run/stage2", "below": 0.01, "num_layers": len(COUNTS["en"])},
    [LanguageLoss("en", False, 1200, 2.0, 2.01), LanguageLoss("el", True, 900, 1.5, 1.5)],
    [
        ExpertTrial(0, 1, [0.5, 0.5], [2.0, 1.5], dropped=False),
        ExpertTrial(0, 2, [0.0, 0.0], [2.0, 1.5], dropped=True),
        ExpertTrial(0, 3, [0.1, 0.4], [2.1, 1.6], dropped=False),
        ExpertTrial(27, 1, [0.0, 0.1], [2.01, 1.5], dropped=True),
    ],
    1000,
    500,
)


def save(folder: Path, pruning: Pruning = PRUNING) -> None:
    folder.mkdir()
    pruning.save(folder)


def test_shows_every_pruned_adapter_of_the_folder(make_run: Callable[..., Run], tmp_path: Path) -> None:
    assert pruning_section(make_run()) is None
    assert list(SECTIONS).index("pruning") == list(SECTIONS).index("routing") + 1
    for name in ("pruned", "pruned-more"):
        save(tmp_path / name)
    section = pruning_section(read_run(tmp_path))
    assert section is not None
    assert section.notes[0] == (
        "pruned, from run/stage2: 2 of 4 experts dropped; parameters of the adapter: 1,000 -> 500 (-50.0 %)."
    )
    losses, layers, *more = section.tables
    assert losses.caption == "pruned: Loss in nats per token; it may rise by 1 %"
    assert losses.rows == [
        ["en", "old", "1,200", "2.0000", "2.0100", "+0.50"],
        ["el", "new", "900", "1.5000", "1.5000", "+0.00"],
    ]
    assert layers.rows == [["0", "4", "3", "2"], ["27", "2", "1 (dense)", "1"]]
    assert list(layers.footer) == ["beside the base", "4", "2", "2"]
    assert [table.caption[:13] for table in more] == ["pruned-more: "] * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"experts": []}, r"pruned/pruning\.json is no result of `neuronmoe prune`: it is not complete$"),
        ({"settings": {}}, r"pruned/pruning\.json is no result of `neuronmoe prune`: 'num_layers'$"),
        ({"settings": {"num_layers": 3}}, r"pruning\.json is for 3 layers, the analysis in .* for 28; move it away or"),
    ],
)
def test_a_pruning_that_does_not_fit_is_refused(
    make_run: Callable[..., Run], tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    save(tmp_path / "pruned", replace(PRUNING, **damage))
    with pytest.raises(UserError, match=message):
        make_run()
