"""What is left of the score where the map is? Average drop, increase and gain in confidence.

Scores should be probabilities, as in ``faithfulness.py``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxfmi.explainer import CHECK, Score, wide
from jaxfmi.heatmap import divide
from jaxfmi.metrics.metric import Metric, metric, part
from jaxfmi.metrics.ranking import count, top
from jaxfmi.references import Baseline, replacement


class Confidence(NamedTuple):
    """The score of an image and of what a map keeps of it."""

    drop: jax.Array  #: 100 max(0, clean - explained) / clean; NaN for a clean score of 0 or less
    increase: jax.Array  #: 100 where explained > clean, else 0; NaN likewise
    gain: jax.Array  #: 100 max(0, explained - clean) / (1 - clean), 0 for clean 1; NaN likewise
    clean: jax.Array
    explained: jax.Array


@metric
def confidence(
    score: Score,
    *,
    keep: float | None = None,
    strict: bool = False,
    relative: bool = True,
    baseline: Baseline = 0.0,
) -> Metric:
    """Average drop, increase and gain, in per cent, and the two scores that they compare.

    After Chattopadhyay et al. (2018) for drop and increase; recalled, the text was not available.
    The explained image is ``x * heatmap`` (what is lost goes to ``baseline``), where the map is in
    [0, 1]: ``jaxfmi.heatmap.unit`` brings it there. With ``keep`` it is the highest share of the
    pixels alone, exactly ``floor(keep H W)``. The two forms differ fivefold on some maps; name the
    form with every number.

    A low drop is good, a high increase and gain. SISE's authors have ``keep=0.15, strict=True``,
    and pytorch-grad-cam ``relative=False``, as a share. torch-cam gives shares, not per cent, and
    divides by the clean score + 1e-7; Xplique takes logits and scales |map| itself.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a probability.
      keep: share of the pixels, above 0 up to 1; None for the product with the map.
      strict: of these, only the pixels above the next one in order: fewer, where values tie.
      relative: divide drop and gain by what could be lost or gained.
      baseline: as for ``deletion_curve``.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> Confidence``.

    Raises:
      ValueError: keep out of range, strict without it, or (where values are known, without keep) a
        map out of [0, 1].
    """
    if strict and keep is None:
        raise ValueError("strict is about the pixels that keep=SHARE keeps; give a share")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the pixels, above 0 up to 1; got {keep}")

    def measure(x, heatmap, *args):
        mask = heatmap if keep is None else _highest(heatmap, count(keep, heatmap.size), strict)
        mask = mask[..., None].astype(x.dtype)
        clean = wide(score(x, *args))
        explained = wide(score(x * mask + replacement(baseline, x) * (1 - mask), *args))
        drop, gain = jax.nn.relu(clean - explained), jax.nn.relu(explained - clean)
        if relative:
            drop, gain = divide(drop, clean), divide(gain, 1 - clean)
        increase = (explained > clean).astype(clean.dtype)
        drop, increase, gain = (
            jnp.where(clean > 0, 100 * v, jnp.nan) for v in (drop, increase, gain)
        )
        return Confidence(drop, increase, gain, clean, explained)

    if keep is None:
        setattr(measure, CHECK, _check_unit)
    return measure


drop, increase, gain = (part(confidence, name, name) for name in ("drop", "increase", "gain"))


def _highest(heatmap: jax.Array, n: int, strict: bool) -> jax.Array:
    """Mark the n highest pixels; if strict, of these the ones above the one that comes next."""
    if not strict or n == heatmap.size:
        return top(heatmap, n)
    return heatmap > jnp.sort(heatmap.ravel(), descending=True)[n]


def _check_unit(x, heatmap, *args) -> None:
    if not isinstance(heatmap, Tracer) and not (heatmap.min() >= 0 and heatmap.max() <= 1):
        raise ValueError(
            f"expected a map in [0, 1], got {heatmap.min():.3g} to {heatmap.max():.3g}; bring it "
            "there with jaxfmi.heatmap.unit, or keep a share of its pixels with keep="
        )
