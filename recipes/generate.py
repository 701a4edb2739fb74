"""Writes the ready-made recipes of this folder: `python recipes/generate.py`."""

from __future__ import annotations

from pathlib import Path

from neuronmoe_plugins.recipes import Recipe, zero2_json

LLAMA, QWEN = "meta-llama/Llama-3.2-3B", "Qwen/Qwen1.5-1.8B"

# Folder -> model, language to learn, experts per layer (arXiv 2603.05046, Tables 2, 8 and 9).
PUBLISHED: dict[str, tuple[str, str, list[int]]] = {
    "llama3.2-3b-greek": (
        LLAMA,
        "el",
        [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 4, 1, 4, 2, 2, 4, 4],
    ),
    "llama3.2-3b-turkish": (
        LLAMA,
        "tr",
        [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 3],
    ),
    "llama3.2-3b-hungarian": (
        LLAMA,
        "hu",
        [5, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 3, 4, 6, 3, 2],
    ),
    "qwen1.5-1.8b-greek": (
        QWEN,
        "el",
        [4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 6],
    ),
}


def recipe_files() -> dict[str, str]:
    """Path within this folder -> content."""
    files = {"deepspeed/zero2.json": zero2_json()}
    for folder, (model, language, num_experts) in PUBLISHED.items():
        recipe = Recipe(
            model=model,
            num_experts=num_experts,
            target_datasets=[f"{language}_train"],
            replay_datasets=["en_replay", "zh_replay", "es_replay"],
            dataset_dir="data",
            output_dir=f"runs/{folder}",
            original_languages=["en", "zh", "es"],
        )
        files |= {f"{folder}/stage1.yaml": recipe.stage1(), f"{folder}/stage2.yaml": recipe.stage2()}
    return files


if __name__ == "__main__":
    for name, text in recipe_files().items():
        path = Path(__file__).parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
