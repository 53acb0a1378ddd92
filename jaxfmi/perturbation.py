"""The engine of all methods that change something, run the model again and look at the score.

``scores`` evaluates many variants of one image in chunks of a fixed size: a variant is made inside
its chunk, those that are not wanted are not computed, neither their number nor the chunk changes
the result, and their number compiles nothing anew. Under ``vmap`` the variants of all images form
one stream of full chunks, so that a batch costs as many evaluations as its images need together,
and memory for one chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend import core

from jaxfmi.chunks import check_chunk, looped
from jaxfmi.explainer import wide
from jaxfmi.references import Baseline, replacement

Group = tuple[Callable[[Any], jax.Array], Any]
"""``(make, items)``: ``make(item)`` gives a variant, items are stacked on their leading axis."""


def scores(
    evaluate: Callable[[jax.Array], jax.Array],
    groups: Sequence[Group],
    keep: jax.Array | None = None,
    *,
    chunk: int | None,
) -> jax.Array:
    """Give ``evaluate(make(item))`` for every item of every group, one after the other.

    Args:
      evaluate: variant -> scalar.
      groups: what variants are made from; all variants have one shape, items of different groups
        need not.
      keep: [N] bool, which of all items are wanted; None for all.
      chunk: variants at a time, for a whole batch under ``vmap``; None for all of them.

    Returns:
      [N], in float32 or wider; 0 where ``keep`` is False. Forward-mode derivatives exist.

    Raises:
      ValueError: no item at all, or ``chunk`` below 1.
    """
    items = [stack for _, stack in groups]
    counts = [jax.tree.leaves(stack)[0].shape[0] for stack in items]
    check_chunk(chunk, sum(counts))
    makers, closed = zip(*(_open(make, _first(stack)) for make, stack in groups), strict=True)
    variant = jax.eval_shape(makers[0], closed[0], _first(items[0]))
    finish, around = _open(evaluate, variant)
    operands = (items, list(closed), around)
    keep = jnp.ones(sum(counts), bool) if keep is None else keep
    rows = _Rows(makers, finish, tuple(int(n) for n in np.cumsum([0, *counts])))
    shared = jax.tree.map(lambda _: True, operands)
    return _stream(rows, chunk, shared)(keep[None], operands)[0]


def under(x: jax.Array, baseline: Baseline = 0.0) -> Callable[[jax.Array], jax.Array]:
    """Make ``mask [H, W] -> m x + (1 - m) b``: x where the mask is 1, the baseline where it is 0.

    The baseline is made once, however many masks follow.
    """
    nothing = isinstance(baseline, int | float) and baseline == 0
    b = None if nothing else replacement(baseline, x)

    def masked(mask):
        m = mask[..., None].astype(x.dtype)
        return m * x if b is None else m * x + (1 - m) * b

    return masked


class _Rows:
    """What scores single rows ``(image, item)`` of a batch of operands."""

    def __init__(self, makers, finish, offsets: tuple[int, ...]):
        self.makers, self.finish, self.offsets = makers, finish, offsets

    def __call__(self, image, item, operands, shared) -> jax.Array:
        """Scores [rows] of the items ``item`` [rows] of the images ``image`` [rows]."""
        (items, closed, around), (items_shared, closed_shared, around_shared) = operands, shared
        variants = None
        for g, make in enumerate(self.makers):
            at = jnp.clip(item, self.offsets[g], self.offsets[g + 1] - 1) - self.offsets[g]
            stack = jax.tree.map(
                lambda v, s, at=at: v[at] if s else v[image, at], items[g], items_shared[g]
            )
            values, axes = _per_row(closed[g], closed_shared[g], image)
            fresh = jax.vmap(make, (axes, 0))
            if len(self.makers) == 1:
                variants = fresh(values, stack)
                break
            here = (item >= self.offsets[g]) & (item < self.offsets[g + 1])
            shape = jax.eval_shape(fresh, values, stack)
            made = jax.lax.cond(
                here.any(),
                fresh,
                lambda *_, shape=shape: jnp.zeros(shape.shape, shape.dtype),
                values,
                stack,
            )
            where = here.reshape(-1, *(1,) * (made.ndim - 1))
            variants = made if variants is None else jnp.where(where, made, variants)
        values, axes = _per_row(around, around_shared, image)
        return wide(jax.vmap(self.finish, (axes, 0))(values, variants))


def _stream(rows: _Rows, chunk: int | None, shared):
    """Make ``(keep [B, N], operands) -> scores [B, N]``, whose ``vmap`` is a longer stream.

    Operands that are not ``shared`` have the leading axis B.
    """

    def run(keep, operands):
        size = keep.size if chunk is None else min(chunk, keep.size)
        wanted, total = jnp.argsort(~keep.ravel(), stable=True), keep.sum()
        wanted = jnp.pad(wanted, (0, -keep.size % size))

        def step(state):
            start, out = state
            ids = jax.lax.dynamic_slice(wanted, (start,), (size,))
            valid = start + jnp.arange(size) < total
            ids = jnp.where(valid, ids, ids[0])
            fresh = rows(ids // keep.shape[1], ids % keep.shape[1], operands, shared)
            return start + size, out.at[ids].add(jnp.where(valid, fresh, 0))

        one = jnp.zeros(1, int)
        kind = jax.eval_shape(lambda o: rows(one, one, o, shared), operands).dtype
        start = (jnp.zeros((), int), jnp.zeros(keep.size, kind))
        _, out = jax.lax.while_loop(lambda state: state[0] < total, step, start)
        return out.reshape(keep.shape)

    stream = custom_vmap(run)

    @stream.def_vmap
    def merge(size, batched, keep, operands):
        if not any(jax.tree.leaves(batched)):  # a batch of tangents alone
            return run(keep, operands), False
        count = keep.shape[-2]

        def join(value, is_batched, is_shared):
            if is_shared:
                return jnp.repeat(value, count, 0) if is_batched else value
            value = value if is_batched else jnp.broadcast_to(value, (size, *value.shape))
            return value.reshape(size * count, *value.shape[2:])

        keep_batched, operands_batched = batched
        still = jax.tree.map(lambda s, b: s and not b, shared, operands_batched)
        out = _stream(rows, chunk, still)(
            join(keep, keep_batched, False), jax.tree.map(join, operands, operands_batched, shared)
        )
        return out.reshape(size, count, -1), True

    return stream


def _open(f: Callable[..., Any], *examples):
    """Give ``f`` as ``g(closed, *args)``, and what it closes over: ``vmap`` must see that."""
    traced, out = jax.make_jaxpr(looped(f), return_shape=True)(*examples)
    tree = jax.tree.structure(out)

    def g(closed, *args):
        program = core.ClosedJaxpr(traced.jaxpr, closed)
        return jax.tree.unflatten(tree, core.jaxpr_as_fun(program)(*jax.tree.leaves(args)))

    return g, list(traced.consts)


def _first(stack):
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), stack)


def _per_row(values, shared, image):
    """Values for every row, and the axes of a ``vmap`` over rows."""
    taken = [v if s else v[image] for v, s in zip(values, shared, strict=True)]
    return taken, [None if s else 0 for s in shared]
