"""A corpus and a spec that every test of the command can start from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_preparation.preparing import write_jsonl, write_spec


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A spec of three data sets from 2,000 Greek-looking documents, many of them twice."""
    generator = random.Random(1)
    texts = ["".join(generator.choices("αβγδ εζη.", k=generator.randrange(20, 900))) for _ in range(1500)]
    write_jsonl(tmp_path / "el.jsonl", texts + texts[:500])
    given = [
        {"documents": 1000},
        {"name": "el_analysis", "role": "analysis", "sentences": 100},
        {"name": "el_heldout", "role": "held-out", "bytes": "20k"},
    ]
    return write_spec(tmp_path / "spec.yaml", given)
