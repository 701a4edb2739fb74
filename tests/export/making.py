"""What the tests of exports and grafts share: tokens, and the type of what makes adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel

TOKENS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))
MakeAdapter = Callable[..., PeftModel]
