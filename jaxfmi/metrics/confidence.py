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
def confidence(score: Score, *, keep: float | None = None, baseline: Baseline = 0.0) -> Metric:
    """Average drop, increase and gain, in per cent, and the two scores that they compare.

    After Chattopadhyay et al. (2018) for drop and increase; recalled, the text was not available.
    The explained image is ``x * heatmap`` (what is lost goes to ``baseline``), where the map is in
    [0, 1]: ``jaxfmi.heatmap.unit`` brings it there. With ``keep`` it is the highest share of the
    pixels alone, exactly ``floor(keep H W)``: the form of SISE's authors with 0.15, whose strict
    comparison keeps fewer where values tie. The two forms differ fivefold on some maps; name the
    form with every number.

    A low drop is good, a high increase and gain. Others: torch-cam gives shares, not per cent, and
    divides by the clean score + 1e-7; pytorch-grad-cam's drop is absolute, not divided by the
    score; Xplique takes logits and scales |map| itself.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``, a probability.
      keep: share of the pixels, above 0 up to 1; None for the product with the map.
      baseline: as for ``deletion_curve``.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> Confidence``.

    Raises:
      ValueError: keep out of range, or (where values are known, without keep) a map out of [0, 1].
    """
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the pixels, above 0 up to 1; got {keep}")

    def measure(x, heatmap, *args):
        mask = heatmap if keep is None else top(heatmap, count(keep, heatmap.size))
        mask = mask[..., None].astype(x.dtype)
        clean = wide(score(x, *args))
        explained = wide(score(x * mask + replacement(baseline, x) * (1 - mask), *args))
        drop = divide(jax.nn.relu(clean - explained), clean)
        increase = (explained > clean).astype(clean.dtype)
        gain = divide(jax.nn.relu(explained - clean), 1 - clean)
        drop, increase, gain = (
            jnp.where(clean > 0, 100 * v, jnp.nan) for v in (drop, increase, gain)
        )
        return Confidence(drop, increase, gain, clean, explained)

    if keep is None:
        setattr(measure, CHECK, _check_unit)
    return measure


drop, increase, gain = (part(confidence, name, name) for name in ("drop", "increase", "gain"))


def _check_unit(x, heatmap, *args) -> None:
    if not isinstance(heatmap, Tracer) and not (heatmap.min() >= 0 and heatmap.max() <= 1):
        raise ValueError(
            f"expected a map in [0, 1], got {heatmap.min():.3g} to {heatmap.max():.3g}; bring it "
            "there with jaxfmi.heatmap.unit, or keep a share of its pixels with keep="
        )
