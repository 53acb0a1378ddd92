"""FAM and its kin as settings of A-FMI's engine: the score is a similarity of embeddings.

A similarity is a function `(q0, partner) -> (q -> scalar)`: q0 is the embedding of the picture as
it is, so that its norm can be held constant. `embed` maps a picture [H, W, C] to an embedding [E].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfmi import reductions
from jaxfmi.afmi import FMI, afmi_terms
from jaxfmi.heatmap import divide
from jaxfmi.multipliers import Multiplier, gradient
from jaxfmi.reductions import Reduction
from jaxfmi.references import Reference, zero_activation

Embed = Callable[[jax.Array], jax.Array]
Similarity = Callable[[jax.Array, jax.Array], Callable[[jax.Array], jax.Array]]


def cosine(q0: jax.Array, partner: jax.Array):
    """The cosine, norms held constant: its map has the cosine as its total."""
    norms = jnp.linalg.norm(q0) * jnp.linalg.norm(partner)
    return lambda q: divide(q @ partner, norms)


def free_cosine(q0: jax.Array, partner: jax.Array):
    """The cosine itself, whose gradient has no component along q: its map sums to 0."""
    return lambda q: divide(q @ partner, jnp.linalg.norm(q) * jnp.linalg.norm(partner))


def dot(q0: jax.Array, partner: jax.Array):
    """The dot product."""
    return lambda q: q @ partner


def neg_squared_distance(q0: jax.Array, partner: jax.Array):
    """The squared distance, negative."""
    return lambda q: -jnp.square(q - partner).sum()


def margin(q0: jax.Array, partners: jax.Array):
    """How much nearer, in squared distance, the first of two partners [2, E] is."""
    first, second = (neg_squared_distance(q0, partner) for partner in partners)
    return lambda q: first(q) - second(q)


def centred_cosine(mean: jax.Array) -> Similarity:
    """The cosine of embeddings less a corpus' mean [E], norms held constant."""

    def similarity(q0, partner):
        inner = cosine(q0 - mean, partner - mean)
        return lambda q: inner(q - mean)

    return similarity


def corpus(mean: jax.Array, foil: jax.Array) -> Similarity:
    """The mean dot product with a corpus, less that with a foil set, from their means [E]."""
    return lambda q0, partner: lambda q: q @ (mean - foil)


def fam_terms(
    embed: Embed,
    layer: str,
    *,
    similarity: Similarity = cosine,
    weighting: Reduction = reductions.signed,
    reference: Reference = zero_activation,
    multiplier: Multiplier | None = None,
) -> Callable[[jax.Array, jax.Array], FMI]:
    """All terms of A-FMI for `similarity(embed(x), partner)`, the partner [E] or [2, E]."""

    def explain(x, partner):
        q0 = embed(x)
        options = {"reference": reference, "multiplier": multiplier or gradient()}

        def score(x):
            return similarity(q0, partner)(embed(x))

        return afmi_terms(score, layer, reduce=weighting, size=None, **options)(x)

    return explain


def support_shares(embed: Embed, query: jax.Array, supports: jax.Array) -> jax.Array:
    """What each support [K, H, W, C] adds to the cosine of query and prototype, [K]."""
    q, e = embed(query), jax.vmap(embed)(supports)
    return divide(e @ q, len(e) * jnp.linalg.norm(q) * jnp.linalg.norm(e.mean(0)))
