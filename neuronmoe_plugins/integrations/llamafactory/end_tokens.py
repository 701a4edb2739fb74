"""Whether a base model knows the tokens that end a template's answers, before `sft` trains it on them.

The rows of a token that the base never saw are all alike, and where they stay frozen the model does not learn to stop.
"""

from __future__ import annotations

from typing import Any

import torch
from llamafactory.data.template import TEMPLATES
from llamafactory.extras import logging
from peft.utils.other import TrainableTokensWrapper
from torch import nn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.experts.weights import whole_weights

# Of a row's norm: what the rows of two tokens that were never trained differ by at most, and what one is shorter than.
ALIKE, SHORT = 0.1, 0.1
# Rows that an end token's is compared with.
NUM_ROWS = 512
logger = logging.get_logger("llamafactory.neuronmoe")


def warn_of_end_tokens(model: nn.Module, tokenizer: Any, template_name: str | None) -> None:
    """Warn of a template whose end token has a row in the embedding or the head that is not and will not be trained.

    Args:
        model: The model that is about to be trained.
        tokenizer: The tokenizer, with the template's special tokens.
        template_name: The host's name of the template.

    Raises:
        UserError: if the model has no row for the token.
    """
    template = TEMPLATES.get(template_name or "")
    tokens = [tokenizer.eos_token, *(template.stop_words[:1] if template else [])]
    ends = {int(tokenizer.convert_tokens_to_ids(token)): token for token in tokens if token}
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    both: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    modules = [module for module in both if module is not None]
    unknown: dict[str, list[str]] = {}
    for module in modules:
        frozen = [index for index in ends if not _is_trained(module, index)]
        for index in untrained_rows(module, tokenizer, frozen) if frozen else []:
            unknown.setdefault(ends[index], []).append(names[id(module)])
    by_rows = any(isinstance(module, TrainableTokensWrapper) for module in modules)
    whole = f"additional_target: {','.join(names[id(module)] for module in modules)}"
    for token, where in unknown.items():
        logger.warning_rank0(
            f"template: {template_name} ends answers with {token}, whose row in {' and '.join(where)} was never "
            "trained: the model will not learn to stop; train it by "
            + (f"naming it to `neuronmoe vocabulary --train-also '{token}'`" if by_rows else whole)
        )


def _is_trained(module: Any, index: int) -> bool:
    """Whether a row of an embedding or a head will be trained, with the others or alone."""
    if isinstance(module, TrainableTokensWrapper):
        return any(index in rows for rows in module.token_adapter.token_indices.values())
    return bool(module.weight.requires_grad)


def untrained_rows(module: Any, tokenizer: Any, ends: list[int]) -> list[int]:
    """Which of some tokens have a row that is like another special or unused token's, or much shorter than others.

    Args:
        module: An embedding or a head; under ZeRO-3 every process has to ask.
        tokenizer: The tokenizer, which knows the special tokens.
        ends: The tokens' indices.

    Raises:
        UserError: if one has no row.
    """
    with whole_weights(module):
        weight = module.weight.detach()
        if weight.is_meta or weight.dim() != 2:
            return []
        missing = [index for index in ends if index >= len(weight)]
        if missing:
            raise UserError(
                f"template: the model has no row for {tokenizer.convert_ids_to_tokens(missing[0])}, which ends its "
                "answers: name a template of this model's tokens"
            )
        others = sorted({*tokenizer.added_tokens_decoder, *range(len(tokenizer), len(weight))} - {*ends})
        others = [index for index in others if index < len(weight)][:NUM_ROWS]
        spread = torch.linspace(0, len(weight) - 1, min(NUM_ROWS, len(weight))).long().tolist()
        rows = {name: weight[indices].float() for name, indices in (("end", ends), ("other", others), ("any", spread))}
    norms = rows["end"].norm(dim=1)
    short = norms < SHORT * rows["any"].norm(dim=1).median()
    alike = (torch.cdist(rows["end"], rows["other"]) <= ALIKE * norms[:, None]).any(dim=1)
    return [index for index, untrained in zip(ends, (short | alike).tolist(), strict=True) if untrained]
