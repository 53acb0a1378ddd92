"""Reductions: from multipliers to one importance per feature map, and to a map.

A reduction is a function ``(multiplied, d, a) -> (fmi, parts)``: from what a multiplier gave, the
difference ``d`` [h, w, K] and the activation ``a`` [h, w, K], to the importance of every feature
map, [1, 1, K], and to what each map puts into the heatmap: pairs of weights [1, 1, K] and maps
[h, w, K], to be multiplied, or the products [h, w, K]. "Complete" means that the parts keep the
total of the multiplier.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxfmi.explainer import HW
from jaxfmi.heatmap import divide
from jaxfmi.multipliers import Elements, Multiplied, PerHalf, PerMap

Parts = jax.Array | Sequence[tuple[jax.Array, jax.Array]]
Reduction = Callable[[Multiplied, jax.Array, jax.Array], tuple[jax.Array, Parts]]


def signed(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """Two importances per map, [2, 1, 1, K]: where it rises, and where it falls. Our construction.

    Means of the multiplier weighted by the rise and by the fall: complete for any head, and
    never outside the multiplier's range.
    """
    m = _per_element(signed, multiplied, d)
    rise, fall = jax.nn.relu(d), -jax.nn.relu(-d)
    up = divide(_sum(m * rise), _sum(rise))
    down = divide(_sum(m * fall), _sum(fall))
    return jnp.stack([up, down]), [(up, rise), (down, fall)]


def mean(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """The mean of the multiplier over positions, Grad-CAM's pooling.

    Not complete: what is lost is h w times the sum of covariances of multiplier and difference,
    on a nonlinear head nearly everything.
    """
    if isinstance(multiplied, PerHalf):
        raise _misfit(mean, multiplied, "the zeros where nothing changes would bias it")
    m = _per_element(mean, multiplied, d)
    changed = (d != 0).any(HW, keepdims=True)  # what is unchanged has no importance
    fmi = jnp.where(changed, m.mean(HW, keepdims=True), 0)
    return fmi, [(fmi, d)]


def ratio(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """Contribution over the sum of the difference: complete, but huge where that sum cancels."""
    fmi = divide(contributions(multiplied, d), _sum(d))
    return fmi, [(fmi, d)]


def absmean(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """The mean of the multiplier weighted by |d|: bounded, not complete."""
    fmi = _absolute_mean(_per_element(absmean, multiplied, d), d)
    return fmi, [(fmi, d)]


def proportional(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """A map's contribution spread over its |d|: complete."""
    fmi = divide(contributions(multiplied, d), _sum(jnp.abs(d)))
    return fmi, [(fmi, jnp.abs(d))]


def contribution(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """Contribution times activation, as LIFT-CAM's published code does; not complete.

    The importance is in units of the score, unlike that of the others.
    """
    fmi = contributions(multiplied, d)
    return fmi, [(fmi, a)]


def none(multiplied: Multiplied, d: jax.Array, a: jax.Array):
    """Element by element, without feature maps: complete, finer, HiResCAM-like.

    The importance it reports is the mean of the multiplier weighted by |d|.
    """
    m = _per_element(none, multiplied, d)
    parts = multiplied.e if isinstance(multiplied, Elements) else m * d
    return _absolute_mean(m, d), parts


def contributions(multiplied: Multiplied, d: jax.Array) -> jax.Array:
    """What every map adds to the change of the score, [1, 1, K], in units of the score."""
    if isinstance(multiplied, PerMap):
        return multiplied.c.reshape(1, 1, -1)
    if isinstance(multiplied, Elements):
        return _sum(multiplied.e)
    return _sum(multiplied.m * d)


def heatmap(parts: Parts, kept: jax.Array) -> jax.Array:
    """The sum [h, w] of the parts of those feature maps that are ``kept``, bool [1, 1, K].

    As products of matrices where weights and maps are apart: the maps of many partners are then one
    product.
    """
    if isinstance(parts, jax.Array):
        return jnp.where(kept, parts, 0).sum(-1)
    weighted = ((jnp.where(kept, w, 0).reshape(-1), maps) for w, maps in parts)
    sums = [jnp.einsum("hwk,k->hw", maps, w, precision="highest") for w, maps in weighted]
    return functools.reduce(jnp.add, sums)


def _absolute_mean(m: jax.Array, d: jax.Array) -> jax.Array:
    return divide(_sum(m * jnp.abs(d)), _sum(jnp.abs(d)))


def _sum(a: jax.Array) -> jax.Array:
    return a.sum(HW, keepdims=True)


def _per_element(reduction: Reduction, multiplied: Multiplied, d: jax.Array) -> jax.Array:
    if isinstance(multiplied, PerMap):
        hint = "ratio, proportional and contribution do, or halves=True"
        raise _misfit(reduction, multiplied, f"it needs one number per element; {hint}")
    return divide(multiplied.e, d) if isinstance(multiplied, Elements) else multiplied.m


def _misfit(reduction: Reduction, multiplied: Multiplied, why: str) -> ValueError:
    kind = {PerMap: "one contribution per map", PerHalf: "halves of maps"}[type(multiplied)]
    return ValueError(
        f"the reduction {getattr(reduction, '__name__', reduction)!r} does not fit a multiplier "
        f"that gives {kind}: {why}"
    )


NAMED = {f.__name__: f for f in (signed, mean, ratio, absmean, proportional, contribution, none)}
