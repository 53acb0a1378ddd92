"""The network's input on its way to the first layer, with the gate that relevance is a slope to.

Pictures are normalised, padded, cut, turned and resized before a layer is met. Values stay what the
network makes of them; the gate goes along, and is 0 where a constant was put beside the picture.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfmi.explainer import wide
from jaxfmi.heatmap import divide
from jaxfmi.precision import is_float
from jaxfmi.taps import Op


class Pixels(NamedTuple):
    """Values made of the input, each of one entry or of neighbours."""

    array: jax.Array
    gate: jax.Array  # below 1 where pixels were resized together with a border
    extremes: tuple[jax.Array, jax.Array]  # of all values, before any was added or taken away
    place: Callable[[Any], jax.Array]  # where what broadcasts to the input has come to


def marked(x: jax.Array, gate: jax.Array) -> Pixels:
    """The input itself."""
    x = wide(x)
    return Pixels(x, gate, _extremes(x), partial(_spread, x.shape))


def gated(v: Pixels) -> jax.Array:
    """The values as they are, with the gate's derivative; constants have none."""
    still = jax.lax.stop_gradient(v.gate)
    return v.array * (1 + divide(v.gate - still, still)).astype(v.array.dtype)


def changed(v: Pixels, array: jax.Array) -> Pixels:
    """``array`` is what a sum or a product with a constant has made of the values."""

    def place(t):
        try:
            return jnp.broadcast_to(v.place(t), array.shape)
        except ValueError:  # of the channels that the constant has made of a grey picture?
            if array.shape == v.array.shape:
                raise
            return _spread(array.shape, t)

    return Pixels(array, jnp.broadcast_to(v.gate, array.shape), _extremes(array), place)


def moved(op: Op, operands) -> Pixels | list[Pixels]:
    """What an operation that moves entries, or averages neighbours, makes of pixels."""

    def made(of, beside=lambda c: c):
        out = op(*(of(v) if isinstance(v, Pixels) else beside(v) for v in operands))
        return out if isinstance(out, list | tuple) else [out]

    def place(i, t):
        return made(lambda v: v.place(t).astype(v.array.dtype), _ungated)[i]

    first = next(v for v in operands if isinstance(v, Pixels))
    arrays = made(lambda v: v.array)
    if op.name == "convert_element_type":
        return first._replace(array=arrays[0])
    gates = made(lambda v: v.gate.astype(v.array.dtype), _ungated)
    parts = [
        Pixels(a, g, first.extremes, partial(place, i))
        for i, (a, g) in enumerate(zip(arrays, gates, strict=True))
    ]
    return parts if op.name == "split" else parts[0]


def _extremes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x.min(), x.max()


def _spread(shape, t) -> jax.Array:
    try:
        return jnp.broadcast_to(wide(jnp.asarray(t)), shape)
    except ValueError:
        raise ValueError(f"bounds broadcast to the input {shape}, unlike {jnp.shape(t)}") from None


def _ungated(c):
    """Of what is put beside pixels: nothing of it is the network's input; an index stays one."""
    return jnp.zeros_like(c) if is_float(jnp.result_type(c)) else c
