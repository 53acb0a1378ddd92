"""FullGrad: what the input and every bias contribute to a score."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi.bilinear import resize
from jaxfmi.explainer import Explainer, Score, Size, explainer, resolve_size, wide
from jaxfmi.heatmap import unit
from jaxfmi.taps import Op, rewrite


class _Affine(NamedTuple):
    """A value on its way through constants: ``shift`` is what they have added so far."""

    value: jax.Array
    shift: jax.Array


@explainer
def full_grad(score: Score, *, size: Size = "input") -> Explainer:
    """FullGrad (Srinivas and Fleuret, 2019): |x ∂f/∂x| plus |b ∂f/∂b| of all spatial biases.

    A bias is what constants add between two operations that are not affine: that of a
    convolution, of batch normalisation (β - μ γ/σ), or of both together, as the gradient sees
    them. Each of the tensors is scaled to [0, 1] by its minimum and maximum over positions and
    channels, resized, and summed over channels. Biases of dense layers have no place and are left
    out. Authors' code resizes with aligned corners; this is the library's bilinear grid.
    Completeness holds for ``full_grad_terms``, before the scaling.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``.
      size: (H, W) of the map; there is no layer, so None is the input's size too.
    """
    terms = full_grad_terms(score)

    def explain(x, *args):
        pixels, biases = terms(x, *args)
        maps = [pixels] + [b for b in biases if _is_spatial(b)]
        grid = resolve_size(size, x) or x.shape[:2]

        def show(t):  # the sum over channels comes first: resizing is linear
            return resize(unit(jnp.abs(t)).sum(-1), grid)

        return sum(show(t.reshape(t.shape[-3:])) for t in maps)

    return explain


@explainer
def full_grad_terms(score: Score) -> Explainer:
    """Split a score into ``(x * gradient [H, W, C], [bias * gradient, ...])``.

    All terms together sum up to the score of a network whose nonlinearities are ReLU, leaky ReLU
    and max pooling. Others (``relu6`` where it clips, sigmoid) keep a part for themselves.
    """

    def explain(x, *args):
        shapes = jax.eval_shape(lambda x: _with_biases(score, None)(x, *args)[1], x)
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]

        def f(x, deltas):
            return _with_biases(score, deltas)(x, *args)

        (dx, db), biases = jax.grad(f, argnums=(0, 1), has_aux=True)(x, zeros)
        return wide(x) * wide(dx), [wide(b) * wide(g) for b, g in zip(biases, db, strict=True)]

    return explain


def _with_biases(score: Score, deltas):
    """Make ``score`` also list its biases, and add ``deltas[i]`` where the i-th has come in."""

    def f(*args):
        biases = []

        def settle(v):
            if not isinstance(v, _Affine):
                return v
            biases.append(v.shift)
            return v.value if deltas is None else v.value + deltas[len(biases) - 1]

        def rule(op: Op, *operands):
            held = any(isinstance(v, _Affine) for v in operands)
            bias = op.primitive in ("add", "sub") or (held and op.primitive in ("mul", "div"))
            if bias and (affine := _through_constant(op, operands)):
                return affine
            if not held or op.opened:
                return NotImplemented
            return op(*map(settle, operands))

        return settle(rewrite(score, rule)(*args)), biases

    return f


def _through_constant(op: Op, operands) -> _Affine | None:
    """``value op constant``, where one operand is constant and the value is floating point."""
    if sum(op.dynamic) != 1 or (op.primitive == "div" and not op.dynamic[0]):
        return None
    v, constant = operands if op.dynamic[0] else operands[::-1]
    if not isinstance(v, _Affine):
        v = _Affine(v, jnp.zeros_like(v))
    if not jnp.issubdtype(v.value.dtype, jnp.floating):
        return None
    return _Affine(*(op(t, constant) if op.dynamic[0] else op(constant, t) for t in v))


def _is_spatial(a: jax.Array) -> bool:
    return a.ndim >= 3 and a.size == a.shape[-3] * a.shape[-2] * a.shape[-1]
