"""What the networks share: a normalised convolution, poolings that are fast and exact, options."""

from functools import partial, reduce
from itertools import product
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from jaxfmi.models.depthwise import depthwise_conv

Padding = Literal["SYMMETRIC", "SAME", "REFLECT"]

PICTURES, PARTS = 8, 16  # of a batch for a CPU's gradient of a kernel: at least, and at most

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class Options(TypedDict, total=False):
    """What every constructor takes.

    num_classes: the number of logits (1000; 10 for the CIFAR networks).
    channels: the number of channels of the input (3).
    dtype: what is computed in, for example `jnp.bfloat16`; parameters stay float32 (None: float32).
    rngs: where the initial parameters come from (None: `nnx.Rngs(0)`).
    """

    num_classes: int
    channels: int
    dtype: DTypeLike | None
    rngs: nnx.Rngs | None


class ConvNorm(nnx.Module):
    """A convolution `[N, H, W, inputs] -> [N, h, w, outputs]`, then batch normalisation.

    `norm=False` leaves the normalisation out and gives the convolution a bias; `bias` says
    otherwise. `SYMMETRIC` padding is `kernel // 2` on both sides as in torch, `SAME` is
    TensorFlow's, which at stride 2 pads an even input on its far side only, and `REFLECT` mirrors
    the picture instead of adding zeros. An integer is itself.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding | int = "SYMMETRIC",
        groups: int = 1,
        norm: bool = True,
        bias: bool | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2 if padding == "SYMMETRIC" else padding,
            feature_group_count=groups,
            conv_general_dilated=convolve,
            use_bias=not norm if bias is None else bias,
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = batch_norm(outputs, dtype=dtype, rngs=rngs) if norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the normalised convolution of `x`, without an activation."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **layout) -> jax.Array:
    """XLA's `conv_general_dilated` in the form that is fastest, above all on a CPU.

    A kernel of one pixel is a matrix product, one per channel a sum of shifted slices, and what is
    not padded gets a row that no window reaches: XLA's own convolutions take a CPU up to 5, 47 and
    3 times as long (benchmarks/convolve.py). A CPU's gradient of a kernel is that of a few pictures
    at a time.

    Args:
      x: `[N, H, W, inputs]`.
      kernel: `[h, w, inputs / groups, outputs]`.
      strides: of rows and columns.
      padding: as XLA takes it.
      layout: the rest of XLA's arguments; NHWC.
    """
    groups, inputs, outputs = layout["feature_group_count"], *kernel.shape[2:]
    cpu = jax.default_backend() == "cpu"
    general = partial(_by_pictures if cpu else _general, strides=tuple(strides), **layout)
    if any(d != 1 for d in (*layout["lhs_dilation"], *layout["rhs_dilation"])):
        return general(x, kernel, padding=padding)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    if inputs == 1 and groups == outputs:
        return depthwise_conv(x, kernel, tuple(strides), tuple(map(tuple, padding)))
    if kernel.shape[:2] == (1, 1) and groups == 1:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))[:, :: strides[0], :: strides[1]]
        return jnp.matmul(x, kernel[0, 0], precision=layout["precision"])
    if any(map(any, padding)):
        return general(x, kernel, padding=padding)
    if strides[0] > 1 and (x.shape[1] - kernel.shape[0]) % strides[0] == strides[0] - 1:
        x = x[:, :-1]  # no window reaches that row either
    y = general(x, kernel, padding=((0, 1), (0, 0)))
    return y if strides[0] > 1 else jax.lax.slice_in_dim(y, 0, -1, axis=1)


def _general(x, kernel, *, strides, padding, **layout) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **layout)


def _by_pictures(x: jax.Array, kernel: jax.Array, **how) -> jax.Array:
    """XLA's convolution, of which the gradient of the kernel is summed over parts of the batch.

    XLA's own, in which all pictures are channels, takes a CPU up to four times as long
    (benchmarks/convolve.py).
    """

    @jax.custom_jvp
    def convolution(x, kernel):
        return _general(x, kernel, **how)

    @partial(convolution.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        changes = []
        if not isinstance(dx, SymbolicZero):
            changes.append(_general(dx, kernel, **how))
        if not isinstance(dkernel, SymbolicZero):
            n = max(PICTURES, -(-len(x) // PARTS))
            parts = [_general(x[i : i + n], dkernel, **how) for i in range(0, len(x), n)]
            changes.append(jnp.concatenate(parts))
        return convolution(x, kernel), reduce(jnp.add, changes)

    return convolution(x, kernel)


def batch_norm(features: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation with torch's defaults (its momentum 0.1 is 0.9 here).

    The variance is the mean of squared deviations: E[x²] - E[x]² cancels.
    """
    exact = {"use_fast_variance": False, "dtype": dtype, "rngs": rngs}
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, **exact)


def draw_as_torch(model: Any, rngs: nnx.Rngs) -> None:
    """Draw the weights again, in place, as the authors of most CIFAR networks do in torch.

    Convolutions ~ N(0, 2 / (kernel area · outputs)), He's for the backward pass, and their biases
    0; dense layers and their biases uniform in ±1 / √inputs, torch's default.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            kernel = module.kernel
            std = np.sqrt(2 / (np.prod(kernel.shape[:2]) * kernel.shape[-1]))
            normal = jax.random.normal(rngs.params(), kernel.shape, kernel.dtype)
            kernel.set_value(std.astype(kernel.dtype) * normal)
        elif isinstance(module, nnx.Linear | nnx.LinearGeneral):
            outputs = np.prod(np.atleast_1d(module.out_features))
            bound = (module.kernel.size / outputs) ** -0.5
            for weight in (module.kernel, *([] if module.bias is None else [module.bias])):
                uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
                weight.set_value(uniform(rngs.params(), weight.shape, weight.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(
    x: jax.Array, window: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """Maximum over square windows of `x` `[..., H, W, C]`, as torch's `MaxPool2d`.

    The value is XLA's windowed maximum. What is differentiated is the maximum of shifted strided
    slices: the gradient of the former takes a CPU 3 to 5 times as long (benchmarks/max_pool.py).
    `ceil_mode` keeps a last window that begins inside the picture and ends outside of it.

    Where several entries of a window share its maximum, they share its gradient, halved at every
    comparison of two equal values; torch gives all of it to the first. After a ReLU, the usual
    place, ties are between zeros, whose gradient the ReLU stops in any case.
    """
    _, sides = _windows(x.shape, window, stride, padding, ceil_mode)
    ones, lowest = (1,) * (x.ndim - 3), np.array(-np.inf, x.dtype)
    windows, strides = (*ones, window, window, 1), (*ones, stride, stride, 1)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, windows, strides, sides)


@max_pool.defjvp
def _max_pool_jvp(window, stride, padding, ceil_mode, primals, tangents):
    def shifted(x):
        (rows, columns), sides = _windows(x.shape, window, stride, padding, ceil_mode)
        # The least finite value: -inf would turn into NaN where it is multiplied by zero.
        x = jnp.pad(x, sides, constant_values=jnp.finfo(x.dtype).min)
        corners = product(range(window), repeat=2)
        return reduce(
            jnp.maximum,
            (x[..., i : i + rows : stride, j : j + columns : stride, :] for i, j in corners),
        )

    return jax.jvp(shifted, primals, tangents)


def _windows(
    shape: tuple[int, ...], window: int, stride: int, padding: int, ceil_mode: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """How far the windows' first entries reach, by rows and columns, and all axes' padding."""
    sizes = shape[-3:-1]
    counts = [pooled_size(size, window, stride, padding, ceil_mode) for size in sizes]
    spans = [(count - 1) * stride + 1 for count in counts]
    beyond = [max(s - 1 + window - padding - n, 0) for s, n in zip(spans, sizes, strict=True)]
    return spans, [*[(0, 0)] * (len(shape) - 3), *[(padding, b) for b in beyond], (0, 0)]


def pooled_size(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many windows fit along an axis; the last must begin before the far padding."""
    free = size + 2 * padding - window
    count = (-(-free // stride) if ceil_mode else free // stride) + 1
    count -= ceil_mode and (count - 1) * stride >= size + padding
    if count < 1:
        raise ValueError(f"a window of {window} does not fit {size} entries padded by {padding}")
    return count


def avg_pool(x: jax.Array, window: int) -> jax.Array:
    """Mean of `x` `[N, H, W, C]` over adjacent square windows; an odd row or column drops out."""
    for size in x.shape[1:3]:
        pooled_size(size, window, window, 0, False)
    return nnx.avg_pool(x, (window, window), (window, window))


@partial(jax.jit, static_argnums=1)
def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Average `x` `[N, H, W, C]` over `size` × `size` bins, as torch's `AdaptiveAvgPool2d`.

    Bin `i` of `n` covers the entries from `floor(i H / n)` to `ceil((i + 1) H / n)`: neighbours
    overlap where `n` does not divide `H`, and repeat where `H < n`. At `H = n` it does nothing.
    Being compiled by itself it stays one operation in a traced network, for `jaxfmi.rewrite`.
    """
    for axis in (1, 2):
        if x.shape[axis] != size:
            bins = jnp.asarray(_bins(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, bins, (axis, 1)), -1, axis)
    return x


def _bins(size: int, count: int) -> np.ndarray:
    """The averaging matrix `[count, size]` of `adaptive_avg_pool` along one axis."""
    start = np.arange(count) * size // count
    stop = -(-np.arange(1, count + 1) * size // count)
    entry = np.arange(size)
    inside = (entry >= start[:, None]) & (entry < stop[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
