"""The two losses of the mixture, in closed form."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812


def load_balancing_loss(
    router_logits: torch.Tensor, selected_experts: torch.Tensor, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Load-balancing loss of one layer, `E * sum_e f_e * P_e` (Switch Transformer, Fedus et al. 2022, eq. 4-6).

    `f_e` is the share of tokens that chose expert e, summed over all top-k choices, `P_e` the mean router probability
    of e. Uniform routing gives `topk`. With `topk` = E it is constant and has no gradient.

    Args:
        router_logits: (tokens, E).
        selected_experts: (tokens, topk) int64.
        token_mask: (tokens,) bool, True where the token is not padding; all tokens when not given.

    Returns:
        Scalar, float32. 0 when the mask leaves no token.
    """
    num_experts = router_logits.shape[-1]
    probabilities = torch.softmax(router_logits.float(), dim=-1)
    chosen = F.one_hot(selected_experts, num_experts).sum(dim=1).float()
    return num_experts * torch.sum(_masked_mean(chosen, token_mask) * _masked_mean(probabilities, token_mask))


def language_prior_loss(
    router_logits: torch.Tensor, old_language_mask: torch.Tensor, double_softmax: bool = False
) -> torch.Tensor:
    """Language-prior routing (LPR) loss of one layer (MoE-LPR, Zhou et al. 2025; NeuronMoE section 3.3).

    The mean over old-language tokens of `-log softmax(router_logits)[expert 0]`, which draws them to the frozen base
    MLP.

    Args:
        router_logits: (tokens, E).
        old_language_mask: (tokens,) bool, True for real tokens of the languages to keep.
        double_softmax: Take the cross-entropy of the probabilities instead of the logits, that is softmax twice, as
            the published code does.

    Returns:
        Scalar, float32. 0 when the mask leaves no token.
    """
    scores = router_logits.float()
    if double_softmax:
        scores = torch.softmax(scores, dim=-1)
    negative_log_prior = -F.log_softmax(scores, dim=-1)[:, 0]
    return _masked_mean(negative_log_prior, old_language_mask)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the first dimension of the rows where `mask` holds; 0, not NaN, when there is none."""
    if mask is None:
        return values.mean(dim=0)
    weights = mask.to(values).reshape(-1, *[1] * (values.dim() - 1))
    return (values * weights).sum(dim=0) / weights.sum().clamp(min=1)
