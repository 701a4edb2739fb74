"""The losses of the mixture, in closed form.

Shapes: tokens are batch x sequence, flattened; E experts, topk choices of a token; E as an index is no expert.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

# Labels with this value are ignored, as in torch.nn.functional.cross_entropy.
IGNORED = -100


def load_balancing_loss(
    router_logits: torch.Tensor,
    selected_experts: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    choice_shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Load-balancing loss of one layer, `E * sum_e f_e * P_e` (Switch Transformer, Fedus et al. 2022, eq. 4-6).

    `f_e` is the share of tokens that chose expert e, summed over all top-k choices, `P_e` the mean router probability
    of e. Uniform routing gives `topk`. With `topk` = E it is constant and has no gradient.

    Args:
        router_logits: (tokens, E).
        selected_experts: (tokens, topk) int64.
        token_mask: (tokens,) bool, True where the token is not padding; all tokens when not given.
        choice_shares: (E,) f_e of a larger batch, of which these tokens are a part; their own when not given.

    Returns:
        Scalar, float32. 0 when the mask leaves no token.
    """
    probabilities = torch.softmax(router_logits.float(), dim=-1)
    if choice_shares is None:
        choice_shares = _masked_mean(_chosen(selected_experts, router_logits.shape[-1]), token_mask)
    balance = choice_shares.to(probabilities.device) * _masked_mean(probabilities, token_mask)
    return router_logits.shape[-1] * balance.sum()


def count_choices(
    selected_experts: torch.Tensor, num_experts: int, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(num_experts,) float32: how many tokens chose each expert, over all top-k choices; arguments as above."""
    chosen = _chosen(selected_experts, num_experts)
    return chosen.sum(dim=0) if token_mask is None else token_mask.to(chosen) @ chosen


def sequence_load_balancing_loss(
    router_logits: torch.Tensor,
    selected_experts: torch.Tensor,
    token_mask: torch.Tensor | None,
    sequence_weights: torch.Tensor,
) -> torch.Tensor:
    """Load-balancing loss of one layer within each sequence (DeepSeek-V2, 2024, eq. 23-25).

    `sum_s w_s * E * sum_e f_{s,e} * P_{s,e} / sum_s w_s`, with f and P as in :func:`load_balancing_loss` but over the
    tokens of sequence s. A mean over sequences, unlike the product of means over a batch, can be accumulated.

    Args:
        router_logits: (batch x sequence, E).
        selected_experts: (batch x sequence, topk) int64.
        token_mask: (batch x sequence,) bool, True where the token is not padding; all tokens when not given.
        sequence_weights: (batch,) weight w_s of each sequence.

    Returns:
        Scalar, float32. 0 when all weights are.
    """
    batch, num_experts = len(sequence_weights), router_logits.shape[-1]
    probabilities = torch.softmax(router_logits.float(), dim=-1).unflatten(0, (batch, -1))
    chosen = _chosen(selected_experts, num_experts).unflatten(0, (batch, -1))
    mask = torch.ones_like(chosen[..., 0]) if token_mask is None else token_mask.to(chosen).unflatten(0, (batch, -1))
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    shares = (chosen * mask.unsqueeze(-1)).sum(dim=1) / lengths
    means = (probabilities * mask.unsqueeze(-1)).sum(dim=1) / lengths
    return _masked_mean(num_experts * (shares * means).sum(dim=-1), sequence_weights.to(shares))


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


def classify_loss(group_logits: torch.Tensor, group_tags: torch.Tensor) -> torch.Tensor:
    """Loss of one layer's language-group classifier (LayerMoE, Zhang et al. 2025).

    The mean over tagged sequences of `-log softmax(group_logits)[tag]`.

    Args:
        group_logits: (batch, groups).
        group_tags: (batch,) int64, the sequence's group; -100 where it has none.

    Returns:
        Scalar, float32. 0 when no sequence is tagged.
    """
    log_probabilities = F.log_softmax(group_logits.float(), dim=-1)
    group_tags = group_tags.to(group_logits.device)
    tagged = group_tags != IGNORED
    chosen = log_probabilities.gather(-1, group_tags.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return _masked_mean(-chosen, tagged)


def sequential_add_loss(
    router_logits: torch.Tensor, target_experts: torch.Tensor, token_mask: torch.Tensor
) -> torch.Tensor:
    """Loss of one layer that draws tokens to their target experts (LayerMoE's published code).

    The mean over the tokens in the mask of `-sum_e n_e * log softmax(router_logits)[e]`, where `n_e` is 1 for a target
    expert of the token and 0 for the others.

    Args:
        router_logits: (tokens, E).
        target_experts: (tokens, E), n_e.
        token_mask: (tokens,) bool, True for real tokens that have a target in some layer.

    Returns:
        Scalar, float32. 0 when the mask leaves no token.
    """
    log_probabilities = F.log_softmax(router_logits.float(), dim=-1)
    return _masked_mean(-(target_experts.to(log_probabilities) * log_probabilities).sum(dim=-1), token_mask)


def _chosen(selected_experts: torch.Tensor, num_experts: int) -> torch.Tensor:
    """(tokens, topk) indices -> (tokens, E) float32, 1 for the chosen ones; the index E is none."""
    return F.one_hot(selected_experts, num_experts + 1).sum(dim=1).float()[:, :num_experts]


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the first dimension weighted by `mask`, bool or weights; 0, not NaN, when they sum to 0."""
    if mask is None:
        return values.mean(dim=0)
    weights = mask.to(values).reshape(-1, *[1] * (values.dim() - 1))
    return (values * weights).sum(dim=0) / weights.sum().clamp(min=1)
