"""Kinds of adapters that can be pruned."""

from __future__ import annotations

from typing import Any

# `MoeConfig`'s fields.
KINDS: dict[str, dict[str, Any]] = {
    "copies": {"num_experts": [3, 1, 4, 2]},
    "ranks": {"num_experts": [3, 1, 4, 2], "expert_rank": [4, 1, 2, 3]},
    "attention": {"num_experts": [3, 1, 2, 1], "expert_rank": 3, "lora_alpha": 6, "targets": "both"},
    "top-1": {"num_experts": [3, 1, 4, 2], "topk": 1},
    "top-3": {"num_experts": [4, 1, 3], "topk": 3, "layers_to_transform": [3, 0, 1], "expert_rank": 2},
    "groups": {"num_experts": [4, 1, 3, 2], "old_num_experts": [3, 1, 3, 1], "group_nums": [3, 0, 0, 2]},
}
