"""A layer of a traced network while it comes in: a product, and what constants make of it.

In a traced program a convolution, its bias and its normalisation are operations of their own. A
pending layer takes them together, whatever their order, until something else touches it; ``linear``
then says what a rule needs to know of it.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxfmi.regrade import Parts
from jaxfmi.taps import Op

PRODUCTS = ("conv_general_dilated", "dot_general", "depthwise_conv")

Norm = Literal["merge", "pass", "gradient"]
Split = Literal["proportional", "positive"]
NORMS, SPLITS = get_args(Norm), get_args(Split)


class First(NamedTuple):
    """Of the network's input, as the layer sees it that is fed with it."""

    gate: jax.Array  #: 1 where the input is, 0 where it was padded
    low: jax.Array  #: the input's least value, whatever was padded or cut off
    high: jax.Array
    place: Callable[[Any], jax.Array]  #: what broadcasts to the input, as the layer is fed with it


class Linear(NamedTuple):
    """A convolution or a dense layer with its bias and normalisation: what a rule is given."""

    product: Callable[[jax.Array, jax.Array], jax.Array]
    x: jax.Array
    w: jax.Array
    b: jax.Array  #: broadcasts to the output
    output: jax.Array  #: product(x, w) and its bias, whether or not b has it
    carried: jax.Array  #: the relevance of the output, per unit of what its derivative carries
    signed: bool  #: whether x may be negative
    start: First | None  #: if x is the network's input
    dense: bool  #: whether it acts on a single vector, not at every position
    inputs: tuple[int, int] | None  #: the data's and the kernel's axis that products add up over
    outputs: int | None  #: the kernel's axis of outputs, if a kernel of fewer fits as well

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """What the layer makes of other data, or with another kernel, before any bias."""
        return self.product(x, w)

    def sum(self, pairs: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
        """What it makes of several data, each with a kernel of its own, in all: one product."""
        if self.inputs is None:
            return functools.reduce(operator.add, (self(x, w) for x, w in pairs))
        return self(*map(jnp.concatenate, zip(*pairs, strict=True), self.inputs))

    @property
    def first(self) -> bool:
        """Whether it is fed with the network's input."""
        return self.start is not None


class Settings(NamedTuple):
    """How a network is read; ``composite`` says what rule a layer has."""

    composite: Callable[[Linear], Callable[[Linear], Parts]]
    norm: Norm = "merge"
    bias: bool = True
    split: Split = "proportional"


def check_reading(norm: str, split: str, norms: Sequence[str] = NORMS) -> None:
    """Raise a ValueError for a way to read normalisation or sums of branches that there is not."""
    for what, given, there in (("norm", norm, norms), ("split", split, SPLITS)):
        if given not in there:
            raise ValueError(f"{what} is one of {', '.join(there)}; got {given!r}")


class Pending(NamedTuple):
    """A product with a constant kernel, and what constants have made of it: scale, shift."""

    product: Callable[[jax.Array, jax.Array], jax.Array]
    axes: tuple[tuple[int, int], ...]  # of the output that are the kernel's alone, and the kernel's
    dense: bool
    inputs: tuple[int, int] | None
    outputs: int | None
    x: jax.Array
    w: jax.Array
    signed: bool
    start: First | None
    scale: jax.Array
    shift: jax.Array
    own: jax.Array  # the bias that comes first
    output: jax.Array  # with that bias
    array: jax.Array  # with all


def begin(op: Op, at: int, x, w, signed: bool, start: First | None) -> Pending:
    """A product of data ``x``, operand ``at``, and a constant kernel ``w``, with nothing behind."""
    product = _product(op, at)
    y = product(jax.lax.stop_gradient(x), w)
    zero = jnp.zeros((1,) * y.ndim, y.dtype)
    dense = op.name == "dot_general" and math.prod(_free(op, at, x.shape)) == 1
    axes, inputs = _outputs(op, at, x, w, y), _inputs(op, at)
    outputs = axes[0][1] if len(axes) == 1 and inputs else None
    known = (product, axes, dense, inputs, outputs, x, w, signed, start)
    return Pending(*known, zero + 1, zero, zero, y, y)


def linear(v: Pending, settings: Settings) -> Linear:
    """What a rule is given of a pending layer, by how normalisation and biases are read."""
    array, output = map(jax.lax.stop_gradient, (v.array, v.output))
    w, b, carried = v.w, v.own, array
    if settings.norm == "merge":
        w, b, output = _scaled(v), v.shift, array
    elif settings.norm == "gradient":
        carried = array * v.scale
    b = b if settings.bias else jnp.zeros_like(b)
    known = (v.signed, v.start, v.dense, v.inputs, v.outputs)
    return Linear(v.product, v.x, w, b, output, carried, *known)


def absorbed(op: Op, operands, at: int) -> Pending | None:
    """A pending layer with one more step: a constant added or multiplied, a sign, a cast."""
    v = operands[at]
    others = op.dynamic[:at] + op.dynamic[at + 1 :]
    if not isinstance(v, Pending) or len(others) > 1 or any(others):
        return None
    if op.name == "convert_element_type":
        fresh, array = v.array is v.output, op(v.array)
        return v._replace(array=array, output=array if fresh else op(v.output))
    if op.name in ("broadcast_in_dim", "expand_dims", "reshape", "squeeze"):
        return _reshaped(op, v)
    if op.name == "slice":
        return _sliced(op, v)
    if op.name == "neg":
        return v._replace(array=op(v.array), scale=-v.scale, shift=-v.shift)
    if op.name not in ("add", "sub", "mul", "div") or (op.name == "div" and at == 1):
        return None
    return _with_constant(op, v, operands[1 - at], at)


def _with_constant(op: Op, v: Pending, c, at: int) -> Pending | None:
    """``layer op constant``, or ``constant op layer`` if ``at`` is 1."""
    array = op(v.array, c) if at == 0 else op(c, v.array)
    c = jnp.reshape(c, (1,) * array.ndim) if jnp.ndim(c) == 0 else c
    if op.name in ("mul", "div"):
        factor = 1 / c if op.name == "div" else c
        scaled = v._replace(array=array, scale=v.scale * factor, shift=v.shift * factor)
        return scaled if _per_output(v, c) else None
    if op.name == "sub" and at == 1:
        return v._replace(array=array, scale=-v.scale, shift=c - v.shift)
    c = -c if op.name == "sub" else c
    if op.name == "add" and v.array is v.output:  # nothing has been done yet
        return v._replace(array=array, output=array, own=c, shift=c)
    return v._replace(array=array, shift=v.shift + c)


def _product(op: Op, at: int):
    return lambda x, w: one(op(x, w) if at == 0 else op(w, x))


def _reshaped(op: Op, v: Pending) -> Pending | None:
    """A pending layer with axes of one entry more or less."""
    array = op(v.array)
    before, after = ([i for i, n in enumerate(a.shape) if n > 1] for a in (v.array, array))
    if [v.array.shape[i] for i in before] != [array.shape[i] for i in after]:
        return None
    moved = dict(zip(before, after, strict=True))

    def fit(t):
        shape = [1] * array.ndim
        for old, new in moved.items():
            shape[new] = t.shape[old]
        return t.reshape(shape)

    output = array if v.array is v.output else op(v.output)
    axes = tuple((moved[out], axis) for out, axis in v.axes if out in moved)
    small = {name: fit(getattr(v, name)) for name in ("scale", "shift", "own")}
    product = v.product
    return v._replace(
        product=lambda x, w: op(product(x, w)),
        axes=axes,
        outputs=None,
        output=output,
        array=array,
        **small,
    )


def _sliced(op: Op, v: Pending) -> Pending | None:
    """A pending layer at some of its positions, before anything else is done to it."""
    array, product = op(v.array), v.product
    whole = all(array.shape[out] == v.array.shape[out] for out, _ in v.axes)
    if v.array is not v.output or v.own.size > 1 or not whole:
        return None
    return v._replace(
        product=lambda x, w: op(product(x, w)), outputs=None, output=array, array=array
    )


def _scaled(v: Pending) -> jax.Array:
    """The kernel with the scale of each of its outputs."""
    shape = [1] * v.w.ndim
    for out, axis in v.axes:
        shape[axis] = v.scale.shape[out]
    return (v.w * v.scale.reshape(shape)).astype(v.w.dtype)


def _per_output(v: Pending, c) -> bool:
    """Whether a constant has one value per output of the kernel, so that it scales the kernel."""
    axes = [out for out, _ in v.axes]
    return all(n == 1 or axis in axes for axis, n in enumerate(jnp.shape(c)))


def _outputs(op: Op, at: int, x, w, y) -> tuple[tuple[int, int], ...]:
    """Axes of the output that are the kernel's alone, each with the kernel's axis."""
    if op.name == "conv_general_dilated":
        numbers = op.params["dimension_numbers"]
        return ((numbers.out_spec[1], numbers.rhs_spec[0]),)
    if op.name == "depthwise_conv":
        return ((y.ndim - 1, w.ndim - 1),)
    contracted, batch = (axes[1 - at] for axes in op.params["dimension_numbers"])
    free = [i for i in range(w.ndim) if i not in (*contracted, *batch)]
    start = len(batch) + (len(_free(op, 0, x.shape)) if at == 0 else 0)
    return tuple((start + i, axis) for i, axis in enumerate(free))


def _inputs(op: Op, at: int) -> tuple[int, int] | None:
    """The axis of the data, and of the kernel, that are summed over, if any number may be there."""
    if op.name == "conv_general_dilated":
        numbers = op.params["dimension_numbers"]
        alone = op.params["feature_group_count"] == 1
        return (numbers.lhs_spec[1], numbers.rhs_spec[1]) if alone else None
    if op.name == "depthwise_conv":
        return None
    of_data, of_kernel = (op.params["dimension_numbers"][0][i] for i in (at, 1 - at))
    return (of_data[0], of_kernel[0]) if len(of_data) == 1 else None


def _free(op: Op, at: int, shape) -> list[int]:
    """The sizes of a matrix product's operand along the axes that are its own."""
    contracted, batch = (axes[at] for axes in op.params["dimension_numbers"])
    return [n for i, n in enumerate(shape) if i not in (*contracted, *batch)]


def one(out):
    """The only output of an operation that may give it in a list."""
    return out[0] if isinstance(out, list | tuple) else out
