"""Controls: maps that know nothing of the network, or of the picture; what explains must beat them.

They have the shape of explainers, so that whatever is done to heatmaps is done to these too.
"""

import jax
import jax.numpy as jnp

from jaxfmi.explainer import Explainer, Score, check_key, explainer

SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


@explainer
def random_map(score: Score) -> Explainer:
    """Independent uniform noise in [0, 1): what a metric gives for no information at all.

    Args:
      score: not asked.

    Returns:
      ``(x [H, W, C], *args, key) -> heatmap [H, W]``.
    """

    def explain(x, *args, key=None):
        return jax.random.uniform(check_key(key, "random_map"), x.shape[:2])

    return explain


@explainer
def centre_gaussian(score: Score, *, sigma: float = 0.25) -> Explainer:
    """A Gaussian on the centre of the picture, where photographers put objects; 1 at its peak.

    Args:
      score: not asked.
      sigma: standard deviation as a share of the picture's size, in each direction its own.

    Returns:
      ``(x [H, W, C], *args) -> heatmap [H, W]``, the same for all pictures of a size.

    Raises:
      ValueError: sigma is not above 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is a share of the picture's size, above 0; got {sigma}")

    def bell(n):
        return jnp.exp(-(((jnp.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * sigma**2))

    def explain(x, *args):
        return jnp.outer(bell(x.shape[0]), bell(x.shape[1]))

    return explain


@explainer
def edge_map(score: Score) -> Explainer:
    """The strength of edges: magnitude of the Sobel gradient of the mean over the channels.

    A map that looks like this one may be made of the picture alone (Adebayo et al., 2018). The
    picture goes on beyond its border with the values of the border, which is therefore no edge.

    Args:
      score: not asked.

    Returns:
      ``(x [H, W, C], *args) -> heatmap [H, W]``.
    """

    def explain(x, *args):
        grey = jnp.pad(x.mean(-1), 1, mode="edge")
        across = jax.scipy.signal.convolve2d(grey, jnp.array(SOBEL, x.dtype), "valid")
        down = jax.scipy.signal.convolve2d(grey, jnp.array(SOBEL, x.dtype).T, "valid")
        return jnp.hypot(across, down)

    return explain
