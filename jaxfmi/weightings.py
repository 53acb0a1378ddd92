"""Weightings: what a feature map of the image is worth to a similarity.

``complete``, ``mean``, ``none`` and the others of ``reductions.py`` spread what the similarity
owes to a map; ``contribution`` is the literal reading of FAM's and SFAM's abstracts: the map of a
channel times what the channel adds, ``M = sum_k w_k A_k`` with ``w = normalise(weight(c, q, s))``.
The papers' own choices of weight and normalisation were not available to us.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi import reductions
from jaxfmi.heatmap import divide, unit
from jaxfmi.reductions import Reduction

Weight = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""``(c [K], q [E], s) -> w [K]``, from contributions and both embeddings."""

Normalise = Callable[[jax.Array], jax.Array]
"""``w [K] -> w [K]``."""

#: The whole similarity, spread over places: the map adds up to it. Another name of ``signed``.
complete = reductions.signed


class Contribution(NamedTuple):
    """A weighting by what each channel contributes; made by ``contribution``."""

    weight: Weight


Weighting = Reduction | Contribution


def share(c: jax.Array, q: jax.Array, s: jax.Array | None) -> jax.Array:
    """A channel's share of the similarity: FAM's and SFAM's, as we read the abstracts.

    The table of ``similarities.py``. That of a distance, or from a centre, is known where the
    embedding is the averaged layer.
    """
    return c


def inverse(c: jax.Array, q: jax.Array, s: jax.Array | None) -> jax.Array:
    """1 / (1 + (q_k - s_k)²): a reading of SFAM for distances; ours, positive, not complete.

    Where all differences are small the weights are all near 1, and the map is LaFAM's.
    """
    return 1 / (1 + _difference(inverse, c, q, s) ** 2)


def gaussian(temperature: float) -> Weight:
    """exp(-(q_k - s_k)² / temperature): ours; take a quantile of the squared differences."""
    if not temperature > 0:
        raise ValueError(f"the temperature is above 0; got {temperature}")

    def gaussian(c, q, s):
        return jnp.exp(-(_difference(gaussian, c, q, s) ** 2) / temperature)

    return gaussian


def contribution(weight: Weight = share) -> Contribution:
    """M = sum_k w_k A_k, w the normalised weights of channels; its total is not the similarity."""
    return Contribution(weight)


def reduction(
    weighting: Contribution,
    normalise: Normalise,
    q: jax.Array,
    s: jax.Array | None,
    shares: Callable[..., jax.Array] | None = None,
) -> Reduction:
    """The weighting as a reduction of the engine, for the embeddings of one image and partner.

    ``shares`` is what the similarity knows of its channels, if the engine does not.
    """

    def contributing(multiplied, d, a):
        c = reductions.contributions(multiplied, d).reshape(-1)
        if shares is not None:
            _difference(weighting.weight, c, q, s)  # or an error
            c = shares(q, s)
        w = normalise(weighting.weight(c, q, s))[None, None]
        return w, [(w, a)]

    return contributing


def by_l1(w: jax.Array) -> jax.Array:
    """Divide by the sum of magnitudes; the default, and ours."""
    return divide(w, jnp.abs(w).sum())


def by_sum(w: jax.Array) -> jax.Array:
    """Divide by the sum: shares of the similarity, which flip signs where that is negative."""
    return divide(w, w.sum())


def by_max(w: jax.Array) -> jax.Array:
    """Divide by the greatest magnitude."""
    return divide(w, jnp.abs(w).max())


def unscaled(w: jax.Array) -> jax.Array:
    """Leave the weights as they are."""
    return w


def softmax(w: jax.Array) -> jax.Array:
    """All weights above 0, nearly equal where they are small: another map, near LaFAM's."""
    return jax.nn.softmax(w)


def minmax(w: jax.Array) -> jax.Array:
    """To [0, 1]: another map, in which signs are lost and the least channel has weight 0."""
    return unit(w)


def _difference(weight, c, q, s):
    if s is None or s.shape != q.shape or q.shape != c.shape:
        raise ValueError(
            f"the weight {weight.__name__!r} compares embeddings channel by channel here: it needs "
            f"one partner and as many numbers in the embedding as maps in the layer; got "
            f"{q.size} numbers, {c.size} maps, partner {None if s is None else s.shape}"
        )
    return q - s


NAMED: dict[str, Weighting] = {
    **reductions.NAMED,
    "complete": complete,
    "contribution": contribution(),
}
NORMALISE: dict[str, Normalise] = {
    "l1": by_l1,
    "sum": by_sum,
    "max": by_max,
    "none": unscaled,
    "minmax": minmax,
    "softmax": softmax,
}
