"""Similarities of two embeddings, as targets to explain.

A similarity is a function ``(q0, partner) -> (q -> scalar)``: ``q0`` [E] is the embedding of the
image as it is, so that norms can be held constant while ``q`` [E] changes; ``partner`` is an
embedding [E], a pair of them [2, E], or None. ``fam`` takes one. On averaged activations the share
of a channel, of which the sum is the similarity, is

=======================  ==============================================================
``dot``                  q_k s_k
``cosine``               q_k s_k / (|q| |s|)
``neg_squared_distance`` -(q_k - s_k)², with the partner as the reference
``margin``               2 q_k (p_k - p'_k), and the constant |p'|² - |p|²
``centred_cosine(mu)``   (q_k - mu_k)(s_k - mu_k) / (|q - mu| |s - mu|), mu as the reference
``corpus(mean, foil)``   q_k (mean_k - foil_k)
=======================  ==============================================================
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi.heatmap import divide

Similarity = Callable[..., Callable[[jax.Array], jax.Array]]
"""``(q0 [E], partner) -> (q [E] -> scalar)``."""

ROUNDING = 1e-6
"""Of an embedding's length: what is no farther from the centre than this is at the centre."""

CENTRE = "__jaxfmi_centre__"
"""The centre [E] of a similarity of directions, from which no embedding may be at 0."""

SHARES = "__jaxfmi_shares__"
"""What a similarity has that is no product with the activation: ``(q [E], s) -> c [E]``."""


def dot(q0: jax.Array, partner: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The dot product q s."""
    s = _like(q0, partner)
    return lambda q: _product(q, s)


def cosine(q0=None, partner=None, *, freeze_norms: bool = True):
    """The cosine q s / (|q| |s|), 0 where an embedding is zero.

    Args:
      q0: the embedding [E] of the image as it is; left out, the call makes a similarity with the
        option below, as in ``cosine(freeze_norms=False)``.
      partner: an embedding [E].
      freeze_norms: hold |q| at |q0|, so that the map adds up to the cosine. Where it changes with
        q, the cosine is the same at any scale of q, and the total of every map made from its
        gradient is exactly 0: it then shows where the partner matches better than on average. Most
        public code explains this one.

    Raises:
      ValueError: an embedding is zero (where its values are known), or has another size.
    """
    if q0 is None:
        return functools.partial(cosine, freeze_norms=freeze_norms)
    s = _direction(_like(q0, partner), "the partner's embedding")
    frozen = _norm(q0, "the image's embedding")
    return lambda q: divide(_product(q, s), frozen if freeze_norms else _norm(q))


def neg_squared_distance(q0: jax.Array, partner: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The squared Euclidean distance, negative: -|q - s|².

    It is quadratic: ``reference="partner"`` with ``multiplier=path(1)`` gives a map whose total is
    the similarity; the gradient would double it. What differs most from a pooled average is often
    the object itself, so that the map is a bad localiser where one object fills the picture;
    ``margin`` to another prototype is a better question.
    """
    s = _like(q0, partner)
    return lambda q: -((q - s) ** 2).sum()


setattr(cosine, CENTRE, 0.0)
setattr(neg_squared_distance, SHARES, lambda q, s: -((q - s) ** 2))


def margin(q0: jax.Array, partner: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Why one prototype and not another: |q - p'|² - |q - p|², for the pair [p, p'] [2, E].

    Linear in q: 2 q (p - p') - (|p|² - |p'|²). The constant is the score at zero activation.
    """
    own, other = _like(q0, partner, pair=True)
    constant = (own**2).sum() - (other**2).sum()
    return lambda q: (2 * q * (own - other)).sum() - constant


def centred_cosine(mu) -> Similarity:
    """The cosine from the centre ``mu`` [E] of a corpus; norms are held constant.

    What all pictures of the corpus share drops out, so that the map is specific to the partner.
    With ``reference=constant_activation(mu)`` its total is the centred cosine.

    Raises:
      ValueError: an embedding is at the centre (where values are known), or has another size.
    """

    def slope(q0, partner):
        centre = _like(q0, mu, what="the centre")
        s = _like(q0, partner)
        s = _direction(s - centre, "the partner's embedding, from the centre,", s)
        return centre, divide(s, _norm(q0 - centre, "the image's embedding, from the centre,", q0))

    def shares(q, s):
        centre, w = slope(q, s)
        return (q - centre) * w

    def centred_cosine(q0, partner):
        centre, w = slope(q0, partner)
        return lambda q: ((q - centre) * w).sum()

    setattr(centred_cosine, SHARES, shares)
    setattr(centred_cosine, CENTRE, mu)
    return centred_cosine


def corpus(mean, foil_mean) -> Similarity:
    """Contrast with sets: the mean dot product with a corpus less that with a foil set.

    Lin, Chen, Kim and Lee, COCOA, 2022 (arXiv 2210.00107), of which only the abstract was
    available to us, contrast similarities to a corpus and to a foil set.

    Args:
      mean: the mean embedding [E] of the corpus.
      foil_mean: that of the foil set.

    Returns:
      A similarity without a partner: ``fam(embed, similarity=corpus(mean, foil_mean))(x)``.
    """

    def corpus(q0, partner=None):
        if partner is not None:
            raise ValueError("corpus(mean, foil_mean) has its partners; call with the image alone")
        w = _like(q0, mean, what="the corpus") - _like(q0, foil_mean, what="the foil set")
        return lambda q: (q * w).sum()

    return corpus


def product_scale(similarity: Similarity) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What a similarity that is a product of parts multiplies q s by: ``(q, s) -> factor``.

    Raises:
      ValueError: another similarity; or an embedding is zero, where its values are known.
    """
    if similarity is dot:
        return lambda q, s: jnp.ones((), q.dtype)
    if similarity is cosine:
        whose = "the image's embedding", "the partner's embedding"
        return lambda q, s: divide(1.0, _norm(q, whose[0])) * divide(1.0, _norm(s, whose[1]))
    raise ValueError(
        f"places are compared by 'cosine' or 'dot'; got {similarity!r}, which is no product of "
        "what places add"
    )


def cosine_weights(q: jax.Array, s: jax.Array) -> jax.Array:
    """Slope of the cosine with its norms held constant, s / (|q| |s|) [E]; 0 if that is 0 / 0."""
    return divide(divide(s, _norm(s)), _norm(q))


def undefined(similarity: Similarity | None, e) -> np.ndarray:
    """Which of the embeddings [N, E] have no such similarity: those at its centre. bool [N]."""
    centre = getattr(getattr(similarity, "func", similarity), CENTRE, None)
    if centre is None or isinstance(centre, Tracer):  # of a traced one nothing is known
        return np.zeros(len(e), bool)
    return _at(np.asarray(e, float) - np.asarray(centre, float), e)


def _like(q0: jax.Array, partner, *, pair: bool = False, what: str = "the partner") -> jax.Array:
    """The partner as an array of the embedding's size, or an error."""
    expected = (2, *q0.shape) if pair else q0.shape
    if partner is None:
        raise ValueError(f"this similarity needs a partner: an image, or an array {expected}")
    if jnp.shape(partner) != expected:
        hint = "a pair of embeddings, [own, other]" if pair else "one embedding"
        raise ValueError(
            f"{what} has shape {jnp.shape(partner)}; expected {hint}, of shape {expected}, because "
            f"the image's embedding has {q0.size} numbers"
        )
    return jnp.asarray(partner, q0.dtype)


def _product(q: jax.Array, s: jax.Array) -> jax.Array:
    """The dot product; of one embedding and many, a product of matrices."""
    return jnp.vdot(q, s, precision="highest")


def _at(gap, e) -> np.ndarray:
    """Whether a gap is 0 up to the rounding of the embedding [..., E] that it is a part of."""
    lengths = (np.linalg.norm(np.asarray(v, float), axis=-1) for v in (gap, e))
    return np.less_equal(next(lengths), ROUNDING * next(lengths))


def _norm(v: jax.Array, what: str = "", of: jax.Array | None = None) -> jax.Array:
    """|v| of any scale, clean under ``grad`` at 0.

    If ``what`` it is is said, a known 0 is an error, up to rounding of what it is a part ``of``.
    """
    if what and not isinstance(v, Tracer) and _at(v, v if of is None else of):
        raise ValueError(f"{what} is zero: the cosine is not defined; take another similarity")
    largest = jax.lax.stop_gradient(jnp.abs(v).max())
    square = _product(*[divide(v, largest)] * 2)
    return largest * jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _direction(v: jax.Array, what: str, of: jax.Array | None = None) -> jax.Array:
    return divide(v, _norm(v, what, of))


#: The similarities that need nothing but the partner, by name.
NAMED: dict[str, Similarity] = {f.__name__: f for f in (cosine, dot, neg_squared_distance, margin)}
