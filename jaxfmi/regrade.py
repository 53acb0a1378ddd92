"""The same value with another gradient: what every rule of relevance propagation comes down to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxfmi.explainer import wide
from jaxfmi.heatmap import divide

Parts = Sequence[tuple[jax.Array, jax.Array]]
"""Pairs ``(share, term)``: the gradient of a layer is the sum of shares times those of terms."""


@jax.custom_jvp
def regrade(value: jax.Array, parts: Parts) -> jax.Array:
    """Give ``value``, with the sum of shares times the derivatives of terms as its derivative."""
    return value


@regrade.defjvp
def _(primals, tangents):
    value, parts = primals
    changes = (share * change for (share, _), (_, change) in zip(parts, tangents[1], strict=True))
    return value, jnp.asarray(sum(changes), value.dtype)


def passed(value: jax.Array, x: jax.Array) -> jax.Array:
    """Give ``value``, a function of each entry of ``x``, so that relevance passes unchanged."""
    return regrade(value, [(divide(wide(value), wide(x)), x)])
