"""How much of a heatmap has to be read? Metrics that ask neither a model nor an annotation.

They see |map| only, and not where its values lie. No positive factor changes them.
"""

import jax
import jax.numpy as jnp

from jaxfmi.heatmap import divide
from jaxfmi.metrics.metric import check_heatmap


def sparseness(heatmap: jax.Array) -> jax.Array:
    """Sparseness (Chalasani, Chen, Chowdhury, Wu and Jha, 2020): the Gini index of |map| [H, W].

    With v_1 <= ... <= v_n the absolute values, sum_k (2k - n - 1) v_k / (n sum_k v_k): 0 where all
    are equal, 1 - 1/n where one alone is not 0. High is good for a map that should point at few
    pixels. NaN for a map of zeros, as there is nothing to share; Quantus adds 1e-7 to every value.
    """
    v = jnp.sort(_shares(heatmap).ravel())
    k = jnp.arange(1, v.size + 1, dtype=v.dtype)
    return ((2 * k - v.size - 1) / v.size * v).sum()


def complexity(heatmap: jax.Array) -> jax.Array:
    """Complexity (Bhatt, Weller and Moura, 2020): the entropy, in nats, of |map| / sum |map|.

    0 where one pixel alone is not 0, log(H W) where all are equal; low is good. Quantus' unit too.
    NaN for a map of zeros.
    """
    return jax.scipy.special.entr(_shares(heatmap)).sum()


def effective_complexity(
    heatmap: jax.Array, *, eps: float = 1e-5, normalize: bool = True
) -> jax.Array:
    """Effective complexity: the number of pixels whose |map| is above eps.

    0 to H W, as a float; low is good. What Quantus counts under this name. Nguyen and Rodríguez
    Martínez (2020), who gave the name, ask the model for the least number of features, in the order
    of |map|, that keep its loss within a tolerance; ``jaxfmi.metrics.insertion_curve`` shows that.

    Args:
      heatmap: [H, W].
      eps: from which on a value counts.
      normalize: divide the map by max |map| first, as Quantus does; False compares the map's own
        values, and is changed by a factor.
    """
    m = jnp.abs(check_heatmap(heatmap))
    return ((divide(m, m.max()) if normalize else m) > eps).sum(dtype=m.dtype)


def _shares(heatmap: jax.Array) -> jax.Array:
    """|map| / sum |map|; NaN for a map of zeros."""
    m = jnp.abs(check_heatmap(heatmap))
    m = divide(m, m.max())  # tiny values keep their digits
    return m / m.sum()
