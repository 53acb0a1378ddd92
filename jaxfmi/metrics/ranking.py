"""The order of a heatmap's pixels: all that deletion, insertion, IoU and the like see of it.

The sort is stable and descending; pixels of one value follow each other by row, then column. No
strictly increasing change of a map changes its ranks.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.metrics.metric import check_heatmap

Ties = Literal["first", "last"]
"""Which of several pixels of one value comes first: the first by row, then column; or the last."""


def ranks(heatmap: jax.Array, ties: Ties = "first") -> jax.Array:
    """Give every pixel of a map [H, W] its place in the order, 0 for the highest; int32 [H, W].

    Raises:
      ValueError: not one map of finite numbers; ties that are neither "first" nor "last".
    """
    if ties not in ("first", "last"):
        raise ValueError(f"ties go 'first' or 'last', got {ties!r}")
    values = check_heatmap(heatmap)
    if ties == "last":
        return ranks(values[::-1, ::-1])[::-1, ::-1]
    order = jnp.argsort(values.ravel(), stable=True, descending=True)
    places = jnp.arange(order.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True).reshape(values.shape)


def top(heatmap: jax.Array, n) -> jax.Array:
    """Mark the ``n`` highest pixels of a map [H, W]: exactly n, whatever the ties; bool [H, W]."""
    return ranks(heatmap) < n


def count(share: float, n: int) -> int:
    """``floor(share n)``, where the product may be off by a float's rounding: .29 of 100 is 29."""
    return int(np.floor(np.round(share * n, 6)))


def tied_share(heatmap: jax.Array) -> jax.Array:
    """Give 1 - distinct values / pixels: above 0 the tie rule decides a part of the order."""
    ordered = jnp.sort(check_heatmap(heatmap).ravel())
    return (ordered[1:] == ordered[:-1]).sum(dtype=ordered.dtype) / ordered.size
