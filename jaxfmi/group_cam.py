"""Group-CAM: Score-CAM of groups of feature maps, over a blurred image."""

import jax
import jax.numpy as jnp

from jaxfmi.explainer import (
    HW,
    Explainer,
    Score,
    activations_and_gradients,
    asked,
    explainer,
    one_layer,
    scalar,
    wide,
)
from jaxfmi.masks import activation_masks, weighted_sum
from jaxfmi.modules import logit, probability
from jaxfmi.references import Baseline, blur, replacement
from jaxfmi.score_cam import AUTHORS, masked_scores

BLUR = blur(50.0, radius=25)


@explainer
def group_cam(
    score: Score,
    layer: str = "auto",
    *,
    groups: int = 32,
    baseline: Baseline = BLUR,
    select: Score | None = None,
    chunk: int | None = 32,
) -> Explainer:
    """Group-CAM (Zhang, Rao and Yang, 2021): masks of groups of channels, over a blurred image.

    Maps times their mean gradients are summed in contiguous groups of equal length, rectified and
    enlarged: u_g. With the mask m_g, which is u_g scaled to [0, 1], the weight is
    relu(f(x m_g + b (1 - m_g)) - f(b)), and the map is sum_g w_g u_g, not scaled.

    The paper's text was not available to us; as the authors' code, but a group without positive
    values has weight 0 (NaN there), and the last group may be shorter. Their grouping by clusters
    is not offered.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a class probability, which ``batched`` gives.
      layer: a tag, or ``"auto"``.
      groups: at most as many, of ceil(K / groups) channels each; one evaluation each.
      baseline: b; by default the authors' blur of 51 pixels with sigma 50.
      select: whose gradient weighs the maps, ``(x, *args) -> scalar``; None for ``score``, or
        where the form of the score was left open for the logit, as the authors do.
      chunk: masks at a time.

    Raises:
      ValueError: groups below 1.
    """
    if groups < 1:
        raise ValueError(f"groups is a number of groups of channels, at least 1; got {groups}")
    gradient_of = scalar(select) if select else asked(score, logit)
    score = asked(score, probability)

    def explain(x, *args):
        name = one_layer(score, layer, x, *args)
        ((a,), (g,)) = activations_and_gradients(gradient_of, [name], x, *args)
        small = jax.nn.relu(_group_sums(g.mean(HW, keepdims=True) * a, groups))
        masks = activation_masks(small, x.shape[:2])
        y = masked_scores(score, masks.maps, masks.live, AUTHORS, baseline, chunk, x, *args)
        gains = jax.nn.relu(y - wide(score(replacement(baseline, x), *args)))
        weights = jnp.where(masks.live, gains, 0)
        return weighted_sum(jnp.moveaxis(small, -1, 0), weights, x.shape[:2])

    return explain


def _group_sums(a: jax.Array, groups: int) -> jax.Array:
    """Sums [h, w, G] over contiguous groups of the channels of ``a``, the last one shorter."""
    channels = a.shape[-1]
    width = -(-channels // min(groups, channels))
    padded = jnp.pad(a, ((0, 0), (0, 0), (0, -channels % width)))
    return padded.reshape(*a.shape[:2], -1, width).sum(-1)
