"""DeepLIFT's Rescale rule for any traced function: finite differences instead of gradients.

The part of a network behind a layer runs on a pair of activations at once. Linear operations act on
both alike; an elementwise function keeps its value and gets the slope between the two as its
gradient; a maximum of two is max(a, b) = b + relu(a - b), and a larger one a tournament of those,
whose result depends on the order of the pairs. The gradient of the whole is then DeepLIFT's
multiplier, and its product with the difference sums up to the change of the score exactly.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxfmi.operations import ELEMENTWISE, LAYOUT
from jaxfmi.taps import INSIDE, Op, rewrite

_LINEAR = LAYOUT | set(
    """add add_any sub neg mul div dot_general conv_general_dilated reduce_sum cumsum
    reduce_window_sum select_n""".split()
)
_SECANT = ELEMENTWISE | {"div"}


class _Pair(NamedTuple):
    x: jax.Array
    x0: jax.Array


def rescaled(head: Callable[[jax.Array], jax.Array], layer: str, a0: jax.Array):
    """Make ``head`` with the same value, and with Rescale's multipliers as its gradient.

    Args:
      head: ``a [h, w, K] -> score``, which meets the tag ``layer``.
      layer: the tag that ``a`` is put in at.
      a0: [h, w, K], the reference activation.

    Raises:
      ValueError: when called, for an operation that mixes two activations (a gate, a softmax) or
        that has no rule.
    """

    def rule(op: Op, *operands):
        if op.tag == layer:
            return _Pair(operands[0], a0.reshape(operands[0].shape).astype(operands[0].dtype))
        pairs = [isinstance(v, _Pair) for v in operands]
        if not any(pairs):
            return NotImplemented
        if op.kind in _SECANT and sum(pairs) == 1 and not _divides(op, pairs):
            return _secant(op, operands, pairs.index(True))
        if op.opened:
            return NotImplemented
        if op.primitive in ("custom_jvp_call", "custom_vjp_call"):
            return INSIDE
        if op.primitive == "max":
            return _maximum(*operands)
        if op.primitive in ("reduce_max", "reduce_window_max"):
            return _tournament(op, operands[0])
        if op.primitive in _LINEAR and _is_linear(op, pairs):
            return _both(op, operands)
        raise ValueError(
            f"rescale has no rule for {op.name!r} of {sum(pairs)} activations; "
            "take the multiplier path()"
        )

    def f(a):
        out = rewrite(head, rule)(a)
        return out.x if isinstance(out, _Pair) else out

    return f


def _divides(op: Op, pairs) -> bool:
    """Whether the operation divides an activation by a constant, which is linear."""
    return op.primitive == "div" and pairs[0]


def _is_linear(op: Op, pairs) -> bool:
    if op.primitive in ("mul", "dot_general", "conv_general_dilated"):
        return sum(pairs) == 1
    if op.primitive in ("div", "gather", "dynamic_slice"):
        return pairs[0] and sum(pairs) == 1
    return not (op.primitive == "select_n" and pairs[0])


def _both(op: Op, operands):
    x = op(*(v.x if isinstance(v, _Pair) else v for v in operands))
    x0 = op(*(v.x0 if isinstance(v, _Pair) else v for v in operands))
    if isinstance(x, list | tuple):
        return [_Pair(*both) for both in zip(x, x0, strict=True)]
    return _Pair(x, x0)


def _secant(op: Op, operands, at: int) -> _Pair:
    """An elementwise function: its value, with the slope between the pair as its derivative."""

    def value(z, others):
        out = op(*others[:at], z, *others[at:])
        return out[0] if isinstance(out, list | tuple) else out

    @jax.custom_jvp
    def secant(z, z0, others):
        return value(z, others)

    @secant.defjvp
    def _(primals, tangents):
        z, z0, others = primals
        f, derivative = jax.jvp(lambda v: value(v, others), (z,), (jnp.ones_like(z),))
        return f, _slope(z, z0, f, value(z0, others), derivative) * tangents[0]

    z, z0 = operands[at]
    others = [*operands[:at], *operands[at + 1 :]]
    return _Pair(secant(z, z0, others), value(z0, others))


def _maximum(a, b) -> _Pair:
    """Give the larger of two pairs, either of which may be a constant."""
    a, b = (v if isinstance(v, _Pair) else _Pair(v, v) for v in (a, b))
    return _Pair(_larger(a.x, b.x, a.x0, b.x0), jnp.maximum(a.x0, b.x0))


@jax.custom_jvp
def _larger(a, b, a0, b0):
    """max(a, b) = b + relu(a - b), relu by its secant."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _(primals, tangents):
    limit = jnp.finfo(primals[0].dtype).max / 4  # the padding of a pooling is -inf
    a, b, a0, b0 = (jnp.clip(v, -limit, limit) for v in primals)
    d, d0 = a - b, a0 - b0
    s = _slope(d, d0, jax.nn.relu(d), jax.nn.relu(d0), (d > 0).astype(d.dtype))
    return jnp.maximum(*primals[:2]), s * tangents[0] + (1 - s) * tangents[1]


def _slope(z, z0, f, f0, derivative):
    near = jnp.abs(z - z0) <= 4 * jnp.finfo(z.dtype).eps * jnp.maximum(jnp.abs(z), jnp.abs(z0))
    return jnp.where(near, derivative, (f - f0) / jnp.where(near, 1, z - z0))


def _tournament(op: Op, pair: _Pair) -> _Pair:
    """A maximum over axes or windows: its candidates meet two by two, then the winners."""
    stack = _over_axes if op.primitive == "reduce_max" else _over_windows
    x, x0 = (stack(op, v) for v in pair)
    while (n := x.shape[0] // 2) > 0:
        won = _maximum(_Pair(x[:n], x0[:n]), _Pair(x[n : 2 * n], x0[n : 2 * n]))
        x, x0 = (jnp.concatenate([w, v[2 * n :]]) for w, v in zip(won, (x, x0), strict=True))
    return _Pair(x[0], x0[0])


def _over_axes(op: Op, x: jax.Array) -> jax.Array:
    """What a maximum over axes is taken of, [candidates, ...]."""
    axes = op.params["axes"]
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    return moved.reshape(-1, *moved.shape[len(axes) :])


def _over_windows(op: Op, x: jax.Array) -> jax.Array:
    """What a max pooling is taken of, [candidates, ...]."""
    if any(n != 1 for n in (*op.params["base_dilation"], *op.params["window_dilation"])):
        raise ValueError("rescale has no rule for a dilated max pooling; take path()")
    window, stride = op.params["window_dimensions"], op.params["window_strides"]
    x = jnp.pad(x, op.params["padding"], constant_values=jnp.finfo(x.dtype).min)
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape, window, stride, strict=True)]
    taken = []
    for start in itertools.product(*map(range, window)):
        stop = [o + (c - 1) * s + 1 for o, c, s in zip(start, counts, stride, strict=True)]
        taken.append(lax.slice(x, start, stop, stride))
    return jnp.stack(taken)
