"""Evaluate a function many times in chunks: the one place where memory is bounded.

The result does not depend on the chunk. ``chunk=None`` evaluates all at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def chunk_map(f: Callable[..., Any], xs, chunk: int | None) -> Any:
    """Stack ``f(x)`` over the leading axis of ``xs`` (an array or a tree of arrays)."""
    size = _chunk_size(chunk, xs)
    return jax.vmap(f)(xs) if size == _length(xs) else jax.lax.map(f, xs, batch_size=size)


def chunk_mean(f: Callable[..., Any], xs, chunk: int | None) -> Any:
    """Average ``f(x)`` over the leading axis of ``xs``; no more than a chunk of values is kept."""
    n, size = _length(xs), _chunk_size(chunk, xs)

    def total(part):
        return jax.tree.map(lambda y: y.sum(0), jax.vmap(f)(part))

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, total(part)), None

    whole = n - n % size
    if whole == size:
        sums = total(jax.tree.map(lambda x: x[:size], xs))
    else:
        parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
        shapes = jax.eval_shape(total, jax.tree.map(lambda p: p[0], parts))
        sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), parts)
    if whole < n:
        sums, _ = add(sums, jax.tree.map(lambda x: x[whole:], xs))
    return jax.tree.map(lambda y: y / n, sums)


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
