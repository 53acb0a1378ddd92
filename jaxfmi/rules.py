"""The rules of relevance propagation, and composites: which layer gets which rule.

A rule looks at a layer (``pending.Linear``) and names the terms p whose shares its relevance is
handed on by: R_in = x dp/dx R / p, with a small number to keep p from 0. As a gradient this is
``carried / p`` times that of p. A composite is a function from a layer to its rule; user-made ones
are as good as those of this file:

    def mine(layer):
        return flat() if layer.first else epsilon(1e-3) if layer.dense else gamma(0.1)

Rules and names are those of zennit, whose numbers the tests meet; the formulas are in Montavon,
Binder, Lapuschkin, Samek and Müller (2019) and Bach et al. (2015), recalled, as the texts were not
available to us. ``W+`` are a kernel's positive entries, ``x+`` the data's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi.explainer import wide
from jaxfmi.heatmap import divide
from jaxfmi.pending import Linear
from jaxfmi.regrade import Parts

Rule = Callable[[Linear], Parts]
Composite = Callable[[Linear], Rule]
Stabiliser = float | Callable[[jax.Array], jax.Array]
"""What is added to a denominator, away from 0; or a function that gives another denominator."""
Bound = jax.Array | float | None
"""Of pixels as the first layer sees them, normalised say, but in the input's layout: broadcasts to
[H, W, C], wherever the network moves channels, or to those that it makes of a grey picture; None
for the image's own."""

EPS = 1e-6


def epsilon(eps: Stabiliser = EPS) -> Rule:
    """LRP-epsilon: by x W of all inputs, over their sum and the bias; LRP-0 for ``eps=0``."""
    return lambda l: [(_share(l.carried, p, eps), p) for p in [_plus(l(l.x, l.w), l.b)]]


def z_plus(eps: Stabiliser = EPS) -> Rule:
    """z+: by the positive of the contributions x W, also where inputs are negative."""

    def rule(l):
        p = _plus(_positive(l), jax.nn.relu(l.b))
        return [(_share(l.carried, p, eps), p)]

    return rule


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, eps: Stabiliser = EPS) -> Rule:
    """LRP-alpha-beta: alpha times the positive contributions less beta times the negative ones.

    Where a layer has contributions of one sign only it is not conserving.

    Raises:
      ValueError: not alpha - beta = 1 with both at least 0.
    """
    if not (abs(alpha - beta - 1) < 1e-9 and beta >= 0):
        raise ValueError(f"alpha - beta is 1 and beta at least 0; got {alpha=}, {beta=}")

    def rule(l):
        p = _plus(_positive(l), jax.nn.relu(l.b))
        n = _plus(_negative(l), -jax.nn.relu(-l.b))
        return [(alpha * _share(l.carried, p, eps), p), (-beta * _share(l.carried, n, eps), n)]

    return rule if beta else z_plus(eps)


def gamma(gamma: float = 0.25, eps: Stabiliser = EPS) -> Rule:
    """LRP-gamma, generalised to inputs and outputs of any sign: W + gamma W+ where y > 0.

    Where the output y is negative the signs change place; where it is 0 relevance is dropped.

    Raises:
      ValueError: gamma below 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma is at least 0; got {gamma}")

    def rule(l):
        w_up, w_down = l.w + gamma * jax.nn.relu(l.w), l.w - gamma * jax.nn.relu(-l.w)
        b_up, b_down = l.b + gamma * jax.nn.relu(l.b), l.b - gamma * jax.nn.relu(-l.b)
        p = _plus(_by_sign(l, w_up, w_down), b_up)
        n = _plus(_by_sign(l, w_down, w_up), b_down)
        up, down = (jnp.where(s > 0, l.carried, 0) for s in (l.output, -l.output))
        return [(_share(up, p, eps), p), (_share(down, n, eps), n)]

    return rule


def z_box(low: Bound = None, high: Bound = None, eps: Stabiliser = EPS) -> Rule:
    """z^B, for pixels between bounds: by x W - low W+ - high W-; the bias cancels.

    The bounds are of what the layer is fed with, after any normalisation. None takes the image's
    own least and largest value. Computed as (x - high) W + (high - low) W+, which is the same.

    Raises:
      ValueError: a low bound above the high one (where both are known).
    """
    check_bounds(low, high)

    def rule(l):
        own = (l.start.low, l.start.high) if l.start else (l.x.min(), l.x.max())
        l_, h_ = (_bound(l, o if b is None else b) for b, o in zip((low, high), own, strict=True))
        p = l.sum([(l.x - h_, l.w), (h_ - l_, jax.nn.relu(l.w))])
        return [(_share(l.carried, p, eps), p)]

    return rule


def w_square(eps: Stabiliser = EPS) -> Rule:
    """w²: by the squares of the kernel, whatever the input."""

    def rule(l):
        p = _plus(l(_gate(l), l.w**2), l.b**2)
        return [(_share(l.carried, p, eps), p)]

    return rule


def flat(eps: Stabiliser = EPS) -> Rule:
    """Flat: to all inputs alike, whatever they and the kernel are."""

    def rule(l):
        # All outputs are equal: one is enough. The barrier hides from XLA's CPU that the kernel is
        # constant: what it makes of such a kernel's gradient under jit is wrong (jax 0.10.2, 64
        # outputs, 64 pixels).
        w = l.w if l.outputs is None else jax.lax.slice_in_dim(l.w, 0, 1, axis=l.outputs)
        p = l(_gate(l), jax.lax.optimization_barrier(jnp.ones_like(w)))
        return [(_share(l.carried, p, eps), p)]

    return rule


def pass_through() -> Rule:
    """Pass: each output to the input at its place, for layers that keep the shape.

    Raises:
      ValueError: when the layer's output has another shape than its input.
    """

    def rule(l):
        sizes, there = ([n for n in a.shape if n > 1] for a in (l.x, l.carried))
        if sizes != there:
            raise ValueError(f"pass_through needs equal shapes, got {l.x.shape}, {l.carried.shape}")
        x = l.x.reshape(l.carried.shape)
        return [(divide(wide(l.carried), wide(x)), x)]

    return rule


# Composites


def epsilon_plus(eps: Stabiliser = EPS) -> Composite:
    """z+ for convolutions, epsilon for dense layers."""
    return _composite(z_plus(eps), epsilon(eps))


def epsilon_plus_flat(eps: Stabiliser = EPS) -> Composite:
    """z+ for convolutions, epsilon for dense layers, flat for the first layer."""
    return _composite(z_plus(eps), epsilon(eps), flat(eps))


def epsilon_alpha2_beta1(eps: Stabiliser = EPS) -> Composite:
    """LRP-alpha2-beta1 for convolutions, epsilon for dense layers."""
    return _composite(alpha_beta(2, 1, eps), epsilon(eps))


def epsilon_alpha2_beta1_flat(eps: Stabiliser = EPS) -> Composite:
    """LRP-alpha2-beta1 for convolutions, epsilon for dense layers, flat for the first layer."""
    return _composite(alpha_beta(2, 1, eps), epsilon(eps), flat(eps))


def epsilon_gamma_box(
    low: Bound = None, high: Bound = None, *, g: float = 0.25, eps: Stabiliser = EPS
) -> Composite:
    """LRP-gamma for convolutions, epsilon for dense layers, z^B for a first convolution."""
    return _composite(gamma(g, eps), epsilon(eps), z_box(low, high, eps), dense_first=epsilon(eps))


def deep_taylor(low: Bound = None, high: Bound = None, eps: Stabiliser = EPS) -> Composite:
    """Deep Taylor decomposition (Montavon et al., 2017): z+ for all layers, z^B for the first.

    Recalled. It assumes biases that are not positive; take it with ``bias=False``.
    """
    return _composite(z_plus(eps), z_plus(eps), z_box(low, high, eps))


def every(rule: Rule, first: Rule | None = None) -> Composite:
    """One rule for all layers, or all but the first."""
    return _composite(rule, rule, first)


def terms(composite: Composite, layer: Linear) -> Parts:
    """What a composite's rule for a layer says of it.

    Raises:
      ValueError: a rule stands for a composite, or a composite for a rule.
    """
    rule = composite(layer)
    parts = rule(layer) if callable(rule) else None
    if not isinstance(parts, list | tuple):
        raise ValueError(
            "a composite is a function from a layer to its rule, and a rule one from a layer to "
            f"terms; got {composite!r}, which gives {rule!r}: every(rule) makes a composite of a "
            "rule, and those of jaxfmi.rules are called first, as in epsilon_plus()"
        )
    return parts


def _composite(conv: Rule, dense: Rule, first=None, dense_first=None) -> Composite:
    def composite(layer):
        at_start = (dense_first if layer.dense else None) or first
        if layer.first and at_start:
            return at_start
        return dense if layer.dense else conv

    return composite


def _share(carried: jax.Array, p: jax.Array, eps: Stabiliser) -> jax.Array:
    """``carried / p``, its denominator kept from 0; 0 where it is 0 all the same."""
    if not callable(eps) and not eps >= 0:
        raise ValueError(f"what keeps a denominator from 0 is at least 0, got {eps}")
    p = jax.lax.stop_gradient(wide(p))
    q = eps(p) if callable(eps) else p + jnp.where(p < 0, -eps, eps)
    return divide(wide(carried), q)


def _plus(product: jax.Array, b: jax.Array) -> jax.Array:
    return product + b.astype(product.dtype)


def _positive(l: Linear) -> jax.Array:
    return _by_sign(l, jax.nn.relu(l.w), -jax.nn.relu(-l.w))


def _negative(l: Linear) -> jax.Array:
    return _by_sign(l, -jax.nn.relu(-l.w), jax.nn.relu(l.w))


def _by_sign(l: Linear, above: jax.Array, below: jax.Array) -> jax.Array:
    """The product with one kernel for positive data, and another for negative."""
    if not l.signed:
        return l(l.x, above)
    return l(jax.nn.relu(l.x), above) + l(-jax.nn.relu(-l.x), below)


def _gate(l: Linear) -> jax.Array:
    """What the relevance of data is the derivative to: the gate on the input, or 1 + dx / x."""
    if l.start is not None:
        return l.start.gate.astype(l.x.dtype)
    still = jax.lax.stop_gradient(l.x)
    return 1 + (l.x - still) * divide(jnp.ones_like(still), still)


def check_bounds(low: Bound, high: Bound) -> None:
    """Raise a ValueError for bounds that have changed places."""
    known = not any(b is None or isinstance(b, Tracer) for b in (low, high))
    if known and np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"the low bound is above the high one: {low} and {high}")


def _bound(l: Linear, bound: jax.Array | float) -> jax.Array:
    if l.start is None:
        value, on = jnp.broadcast_to(bound, l.x.shape), _gate(l)
    else:
        value, gate = l.start.place(bound), l.start.gate
        on = divide(gate, jax.lax.stop_gradient(gate))
    return jax.lax.stop_gradient(value).astype(l.x.dtype) * on.astype(l.x.dtype)


NAMED = {
    f.__name__: f()
    for f in (
        epsilon_plus,
        epsilon_plus_flat,
        epsilon_alpha2_beta1,
        epsilon_alpha2_beta1_flat,
        epsilon_gamma_box,
        deep_taylor,
    )
} | {"epsilon": every(epsilon()), "z_plus": every(z_plus())}
