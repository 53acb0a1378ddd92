"""Does a map add up? Errors of completeness and of conservation, for signed maps in score units.

Methods that promise it: integrated gradients, A-FMI and Shapley values add up to the change of the
score from a reference, LRP to the score itself. For others (Grad-CAM, say) these are only numbers.
"""

import jax
import jax.numpy as jnp

from jaxfmi.explainer import Score, wide
from jaxfmi.metrics.metric import Metric, metric
from jaxfmi.references import Baseline, replacement


@metric
def completeness_error(
    score: Score, *, reference: Baseline = 0.0, relative: bool = False
) -> Metric:
    """Completeness (Sundararajan, Taly and Yan, 2017): sum(map) - (score(x) - score(x0)), signed.

    0 is good; Captum's convergence delta has the same sign. Quantus tests for equality instead,
    with the sample's minimum as its reference.

    Args:
      score: the one that was explained, mostly a logit.
      reference: x0, the one of the explainer, in the units of x: a number, an array, or a function
        ``x -> x0`` such as those of ``jaxfmi.references``.
      relative: divide by |score(x) - score(x0)|; NaN where that is 0.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> scalar``.
    """

    def error(x, heatmap, *args):
        change = score(x, *args) - score(replacement(reference, x), *args)
        return _error(heatmap, wide(change), relative)

    return error


@metric
def conservation_error(score: Score, *, relative: bool = False) -> Metric:
    """Conservation (Bach et al., 2015, of LRP): sum(map) - score(x), signed; 0 is good.

    Args:
      score: the one that was explained, mostly a logit.
      relative: divide by |score(x)|; NaN where that is 0.

    Returns:
      ``(x [H, W, C], heatmap [H, W], *args) -> scalar``.
    """
    return lambda x, heatmap, *args: _error(heatmap, wide(score(x, *args)), relative)


def _error(heatmap: jax.Array, expected: jax.Array, relative: bool) -> jax.Array:
    error = heatmap.sum() - expected
    size = jnp.where(expected == 0, jnp.nan, jnp.abs(expected))
    return error / size if relative else error
