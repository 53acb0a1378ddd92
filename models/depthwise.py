"""A depthwise convolution whose gradient takes a CPU no longer than it must.

The value is a sum of shifted slices. Their own transpose adds one padded copy of the cotangent per
entry of the kernel, and XLA computes what the cotangent is made of anew for each of these copies:
the gradient of a block of MobileNet takes 2 to 3 times as long at stride 2, 1.2 times at stride 1
(benchmarks/convolve.py). Hence a primitive, linear in both operands, that has its own transpose:
slices again.
"""

import operator
from collections.abc import Sequence
from functools import partial, reduce
from itertools import product

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Pair = tuple[int, int]

_depthwise = Primitive("depthwise_conv")


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[tuple[int, ...], ...]
) -> jax.Array:
    """Convolve every channel with its own kernel: one operation, `depthwise_conv`, when traced.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[h, w, 1, C]`.
      strides: of rows and columns.
      padding: before and after the rows and the columns.

    Returns:
      `[N, H', W', C]`. Differentiable in both modes, to any order.
    """
    return _depthwise.bind(x, kernel, strides=strides, padding=padding)


def sum_of_slices(x: jax.Array, kernel: jax.Array, *, strides: Pair, padding) -> jax.Array:
    """The sum of shifted slices of `x`, each times its entry of the kernel."""
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (n - k + 1 for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    slices = (
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]] * kernel[None, i, j : j + 1]
        for i, j in product(range(height), range(width))
    )
    return reduce(operator.add, slices)


def _into_x(cotangent: jax.Array, x, kernel: jax.Array, *, strides: Pair, padding):
    """What the entries of `x` receive: of each phase a sum of slices; the phases are interleaved.

    In one dimension the padded entry `a + s m` is met by the kernel's entries `a + s t`, in the
    output at `m - t`.
    """
    shape, (high, wide) = x.aval.shape, strides
    sizes = [n + sum(sides) for n, sides in zip(shape[1:3], padding, strict=True)]
    rows, columns = (-(-n // s) for n, s in zip(sizes, strides, strict=True))
    down, across = (-(-k // s) for k, s in zip(kernel.shape[:2], strides, strict=True))
    beyond = [max(n - m, 0) for n, m in zip((rows, columns), cotangent.shape[1:3], strict=True)]
    sides = ((0, 0), (down - 1, beyond[0]), (across - 1, beyond[1]), (0, 0))
    wider = jnp.pad(cotangent, sides)

    def phase(a, b):
        terms = [
            wider[:, down - 1 - t :, across - 1 - u :][:, :rows, :columns]
            * kernel[None, a + high * t, b + wide * u : b + wide * u + 1]
            for t, u in product(range(down), range(across))
            if a + high * t < kernel.shape[0] and b + wide * u < kernel.shape[1]
        ]
        return reduce(operator.add, terms or [jnp.zeros_like(wider[:, :rows, :columns])])

    phases = jnp.stack([jnp.stack([phase(a, b) for b in range(wide)], 3) for a in range(high)], 2)
    whole = phases.reshape(shape[0], rows * high, columns * wide, shape[3])
    (top, _), (left, _) = padding
    return whole[:, top : top + shape[1], left : left + shape[2]]


def _into_kernel(cotangent: jax.Array, x: jax.Array, kernel, **layout):
    (out,) = jax.linear_transpose(lambda k: sum_of_slices(x, k, **layout), kernel.aval)(cotangent)
    return out


def _shape(x, kernel, **layout):
    out = jax.eval_shape(partial(sum_of_slices, **layout), x, kernel)
    return ShapedArray(out.shape, out.dtype)


def _batch(operands: Sequence[jax.Array], axes: Sequence[int | None], **layout):
    """More images are just more images; a kernel of each needs a loop over slices."""
    x, kernel = operands
    if axes[0] is None or axes[1] is not None:
        return jax.vmap(partial(sum_of_slices, **layout), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    out = _depthwise.bind(x.reshape(-1, *x.shape[2:]), kernel, **layout)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


_depthwise.def_impl(jax.jit(sum_of_slices, static_argnames=("strides", "padding")))
_depthwise.def_abstract_eval(_shape)
ad.defbilinear(_depthwise, _into_x, _into_kernel)
batching.primitive_batchers[_depthwise] = _batch
mlir.register_lowering(_depthwise, mlir.lower_fun(sum_of_slices, multiple_results=False))
