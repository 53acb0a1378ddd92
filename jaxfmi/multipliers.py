"""Multipliers: what a change of an activation is worth to the score.

A multiplier is a function ``View -> PerElement | PerHalf | Elements | PerMap`` such that the total
of multiplier times difference is, or comes near to, the change of the score. ``afmi`` takes one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi.chunks import chunk_map, chunk_mean
from jaxfmi.explainer import check_key
from jaxfmi.heatmap import divide
from jaxfmi.rescale import rescaled


class View(NamedTuple):
    """What a multiplier sees of one image and one reference."""

    a: jax.Array  #: [h, w, K], the image's activation
    a0: jax.Array  #: [h, w, K], the reference's
    head: Callable[[jax.Array], jax.Array]  #: [h, w, K] -> score
    layer: str
    x: jax.Array  #: [H, W, C]
    x0: jax.Array | None  #: [H, W, C]; None where the reference is an activation
    stem: Callable[[jax.Array], jax.Array]  #: [H, W, C] -> [h, w, K]
    key: jax.Array | None
    chunk: int | None  #: evaluations of the head at a time


class PerElement(NamedTuple):
    """A multiplier [h, w, K] for every element of the difference."""

    m: jax.Array


class PerHalf(NamedTuple):
    """A multiplier [h, w, K], constant where a map rises and where it falls, 0 elsewhere."""

    m: jax.Array


class Elements(NamedTuple):
    """Contributions [h, w, K] without a multiplier."""

    e: jax.Array


class PerMap(NamedTuple):
    """One contribution [K] for every feature map."""

    c: jax.Array


Multiplied = PerElement | PerHalf | Elements | PerMap
Multiplier = Callable[[View], Multiplied]


def path(steps: int = 32) -> Multiplier:
    """The mean gradient on the straight way between the activations, by the midpoint rule.

    Complete up to the rule: 64 steps for reports. Its sum element by element is layer integrated
    gradients (Sundararajan, Taly and Yan, 2017).
    """

    def multiplier(v: View):
        times = (jnp.arange(steps) + 0.5) / steps
        gradient = jax.grad(v.head)
        return PerElement(chunk_mean(lambda t: gradient(v.a0 + t * (v.a - v.a0)), times, v.chunk))

    return multiplier


def path_input(steps: int = 64) -> Multiplier:
    """Conductance: the path is straight in pixels, and explains what that path does.

    Complete up to the rule, which converges slowly. Needs a reference image.
    """

    def multiplier(v: View):
        if v.x0 is None:
            raise ValueError("path_input needs a reference image; this reference is an activation")
        change = v.x - v.x0

        def element(t):
            a, velocity = jax.jvp(v.stem, (v.x0 + t * change,), (change,))
            return jax.grad(v.head)(a) * velocity

        return Elements(chunk_mean(element, (jnp.arange(steps) + 0.5) / steps, v.chunk))

    return multiplier


def rescale() -> Multiplier:
    """DeepLIFT's Rescale rule through the head (Shrikumar, Greenside and Kundaje, 2017).

    Complete to rounding, in one pass over the pair of activations; not the same for two programs
    of one function. ``rescale.py`` says which operations have a rule.
    """
    return lambda v: PerElement(jax.grad(rescaled(v.head, v.layer, v.a0))(v.a))


def gradient() -> Multiplier:
    """The gradient at the image, which saturates; with ``mean`` and no reference, Grad-CAM."""
    return lambda v: PerElement(jax.grad(v.head)(v.a))


def trapezoid() -> Multiplier:
    """The mean of the gradients at both ends, exact for a quadratic head."""
    return lambda v: PerElement((jax.grad(v.head)(v.a) + jax.grad(v.head)(v.a0)) / 2)


def ablation(halves: bool = False) -> Multiplier:
    """How far the score falls when a map is put back to its reference: leave one out.

    Args:
      halves: replace the rising and the falling part of a map separately, at twice the cost;
        gives one multiplier for each, which fits more reductions.
    """
    return _one_map(lambda v, part: v.head(v.a) - v.head(jnp.where(part, v.a0, v.a)), halves)


def insertion(halves: bool = False) -> Multiplier:
    """How far the score rises when one map is put into the reference: one in.

    Args:
      halves: as for ``ablation``.
    """
    return _one_map(lambda v, part: v.head(jnp.where(part, v.a, v.a0)) - v.head(v.a0), halves)


def shapley(permutations: int = 8) -> Multiplier:
    """Shapley values of the maps, by permutations, each of which is complete by itself.

    Drawn in antithetic pairs: every second permutation is the one before it, reversed. Takes the
    explainer's key. The head runs ``permutations * (K + 1)`` times.
    """

    def multiplier(v: View):
        key = check_key(v.key, "shapley")
        if permutations < 1:
            raise ValueError(f"shapley needs at least 1 permutation; got {permutations}")
        maps = v.a.shape[-1]
        keys = jax.random.split(key, (permutations + 1) // 2)
        ranks = jax.vmap(lambda k: jax.random.permutation(k, maps))(keys)
        ranks = jnp.stack([ranks, maps - 1 - ranks], 1).reshape(-1, maps)[:permutations]

        def first(at):
            return v.head(jnp.where((ranks[at[0]] < at[1])[None, None], v.a, v.a0))

        at = jnp.indices((permutations, maps + 1)).reshape(2, -1).T
        scores = chunk_map(first, at, v.chunk).reshape(permutations, maps + 1)
        steps = jnp.diff(scores, axis=1)
        return PerMap(jnp.take_along_axis(steps, ranks, 1).mean(0))

    return multiplier


def map_drops(a: jax.Array, a0: jax.Array, head, chunk: int | None) -> jax.Array:
    """head(a) - head(a with map k from a0) for every map k, [K]."""
    without = one_map_at_a_time(lambda k: head(jnp.where(k, a0, a)), a.shape[-1], chunk)
    return head(a) - without


def one_map_at_a_time(f: Callable[[jax.Array], jax.Array], maps: int, chunk: int | None):
    """Stack ``f(k [1, 1, K] bool)`` over the maps, ``k`` true at one of them at a time."""
    index = jnp.arange(maps)
    return chunk_map(lambda k: f((index == k)[None, None]), index, chunk)


def _one_map(change: Callable[[View, jax.Array], jax.Array], halves: bool) -> Multiplier:
    """``change(view, part)`` for each map as the part; or for its two halves, over their sums."""

    def per_map(v: View, where):
        return one_map_at_a_time(lambda k: change(v, where & k), v.a.shape[-1], v.chunk)

    def multiplier(v: View):
        if not halves:
            return PerMap(per_map(v, True))
        d = v.a - v.a0

        def of_half(half):
            total = jnp.where(half, d, 0).sum((0, 1))
            return jnp.where(half, divide(per_map(v, half), total)[None, None], 0)

        return PerHalf(of_half(d > 0) + of_half(d < 0))

    return multiplier


NAMED = {
    f.__name__: f()
    for f in (path, path_input, rescale, gradient, trapezoid, ablation, insertion, shapley)
}
