"""Relevance as a derivative: what layer-wise relevance propagation runs on.

Put a gate s = 1 on a value x, and let every operation up to the output y keep its value. If their
gradients are such that each hands on what it is given, then d y / d s is a map of what x
contributes to y. Reverse-mode differentiation carries m, with relevance = value times m, and is
right as it stands for all that is linear and homogeneous: pooling, sums of branches, layout, ReLU.
Only convolutions and dense layers need another gradient, that of a *rule* (``rules.py``), and
curved functions the one that passes relevance on.

``transport`` runs a function in this way. Nothing in the model is changed: biases and normalisation
that follow a convolution are met as additions and products with constants, and are taken along in a
pending layer until something else touches it. What is not known here is an error, never a silent
gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfmi import taps
from jaxfmi.explainer import wide
from jaxfmi.pending import Settings
from jaxfmi.walk import MARK, Walk, is_held

INPUT = "input"  #: as a place: the pixels
NEVER = -1  # a count that is never met


def transport(
    f: Callable[[jax.Array], Any],
    x: jax.Array,
    places: Sequence[str],
    settings: Settings,
    until: str | None = None,
) -> tuple[Any, Callable[[Any], dict[str, jax.Array]]]:
    """Run ``f(x)`` so that what its output is worth can be pulled back to several places.

    Args:
      f: of one array; everything it closes over is constant.
      x: its argument.
      places: tags, and ``"input"``.
      settings: the rule and how normalisation, biases and sums of branches are read.
      until: a tag, to have its value as the output.

    Returns:
      The output, and ``pull``: from an array of the output's shape, which times the output is the
      relevance there, to the relevance at every place.

    Raises:
      ValueError: a place is not there, or an operation on the way has no rule.
    """

    def marked(x):
        return f(taps.tag(x, MARK))

    names = [MARK if place == INPUT else place for place in places]
    shapes = jax.eval_shape(taps.capture(marked, *names), x)[1]
    ones = {name: wide(jnp.ones(s.shape, s.dtype)) for name, s in shapes.items()}

    def run(gates, needed=None):
        walk = Walk(gates, settings, until, needed)
        out = taps.rewrite(marked, walk, live=until is None)(x)  # a tag may lead nowhere
        return (walk.reached if until else jax.tree.map(walk.array, out, is_leaf=is_held)), walk

    counted = {"n": NEVER}  # a tag is no score: nothing is behind it
    if until is None:
        jax.eval_shape(lambda gates: counted.update(n=run(gates)[1].met), ones)
    out, pull = jax.vjp(lambda gates: run(gates, counted["n"])[0], ones)

    def back(cotangent):
        found = pull(cotangent)[0]
        return {place: found[name] for place, name in zip(places, names, strict=True)}

    return out, back
