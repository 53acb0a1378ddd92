"""Evaluate a function many times in chunks: the one place where memory is bounded.

The result does not depend on the chunk. ``chunk=None`` evaluates all at once. What runs in a loop,
here or elsewhere, is ``looped``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import ConvDimensionNumbers, conv_general_dilated_p

from jaxfmi.taps import REMAT, Op, rewrite


def chunk_map(f: Callable[..., Any], xs, chunk: int | None) -> Any:
    """Stack ``f(x)`` over the leading axis of ``xs`` (an array or a tree of arrays)."""
    size = _chunk_size(chunk, xs)
    return jax.vmap(f)(xs) if size == _length(xs) else jax.lax.map(looped(f), xs, batch_size=size)


def chunk_mean(f: Callable[..., Any], xs, chunk: int | None) -> Any:
    """Average ``f(x)`` over the leading axis of ``xs``; no more than a chunk of values is kept."""
    n, size = _length(xs), _chunk_size(chunk, xs)

    def total(f, part):
        return jax.tree.map(lambda y: y.sum(0), jax.vmap(f)(part))

    def add(f, sums, part):
        return jax.tree.map(jnp.add, sums, total(f, part)), None

    whole = n - n % size
    if whole == size:
        sums = total(f, jax.tree.map(lambda x: x[:size], xs))
    else:
        parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
        shapes = jax.eval_shape(partial(total, f), jax.tree.map(lambda p: p[0], parts))
        sums = jax.tree.map(jnp.zeros_like, shapes)
        sums, _ = jax.lax.scan(partial(add, looped(f)), sums, parts)
    if whole < n:
        sums, _ = add(f, sums, jax.tree.map(lambda x: x[whole:], xs))
    return jax.tree.map(lambda y: y / n, sums)


def looped(f: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``f`` with every convolution in NHWC, the layout that a CPU is quick with inside a loop.

    In the outermost program XLA's compiler for CPUs brings other layouts to it, such as those of
    the gradients of NHWC convolutions; in a loop it does not, and a ResNet-18 takes 2.4 times as
    long (jaxlib 0.10.2, ``benchmarks/loops.py``). For other devices, by JAX's default, ``f`` is as
    it was; so are derivatives that are taken through the loop.
    """
    return rewrite(f, _as_nhwc) if jax.default_backend() == "cpu" else f


def _as_nhwc(op: Op, *operands):
    """A convolution as one of ``[N, H, W, C]`` and ``[h, w, inputs, outputs]``; others as is."""
    if op.primitive in REMAT:
        inside: Any = op.inside
        return op.bind(*operands, jaxpr=jax.make_jaxpr(partial(inside, _as_nhwc))(*operands).jaxpr)
    if op.primitive != conv_general_dilated_p.name:
        return NotImplemented if op.opened else op(*operands)
    given, n = op.params["dimension_numbers"], operands[0].ndim
    pixels, kernel = (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2))
    nhwc = ConvDimensionNumbers(pixels, kernel, pixels)
    moved = (jnp.moveaxis(a, g, w) for a, g, w in zip(operands, given, nhwc, strict=False))
    return jnp.moveaxis(op.bind(*moved, dimension_numbers=nhwc), nhwc.out_spec, given.out_spec)


def check_chunk(chunk: int | None, evaluations: int) -> None:
    """Raise a ValueError if there is nothing to evaluate, or a chunk is below 1."""
    if evaluations < 1:
        raise ValueError("nothing to evaluate: steps, samples and the like are at least 1; got 0")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a number of evaluations at a time, at least 1; got {chunk}")


def _chunk_size(chunk: int | None, xs) -> int:
    check_chunk(chunk, _length(xs))
    return _length(xs) if chunk is None else min(chunk, _length(xs))


def _length(xs) -> int:
    return jax.tree.leaves(xs)[0].shape[0]
