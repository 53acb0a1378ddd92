"""The layer lists of the twins as JAX functions, so that both sides explain one network."""

import jax
import jax.numpy as jnp
import numpy as np
import reference_layers as ref
from jax import lax
from layer_nets import SIGMOID, SILU
from reference_layers import RELU

from jaxfmi import tag

LAYOUT = ("NHWC", "HWIO", "NHWC")


def network(layers):
    """``x [H, W, C] -> output``, in the type of x."""

    def f(x):
        for layer in layers:
            x = apply(layer, x)
        return x

    return f


def apply(layer, x):
    def constant(a):
        a = jnp.asarray(a, x.dtype)
        return a.reshape((1,) * (x.ndim - a.ndim) + a.shape)

    match layer:
        case ref.Conv():
            return convolution(layer, x)
        case ref.Dense():
            return x @ jnp.asarray(layer.w, x.dtype) + constant(layer.b)
        case ref.BatchNorm():
            scale = jnp.asarray(layer.scale) * lax.rsqrt(jnp.asarray(layer.var) + layer.eps)
            return (x - constant(layer.mean)) * constant(scale) + constant(layer.shift)
        case ref.Activation():
            return {id(RELU): jax.nn.relu, id(SILU): jax.nn.silu, id(SIGMOID): jax.nn.sigmoid}[
                id(layer)
            ](x)
        case ref.MaxPool():
            return window(lax.max, -jnp.inf, layer, x)
        case ref.AvgPool():
            return window(lax.add, 0.0, layer, x) / layer.window**2
        case ref.GlobalAvgPool():
            return x.mean((0, 1))
        case ref.Flatten():
            return x.transpose(layer.axes).reshape(-1)
        case ref.Tag():
            return tag(x, layer.name)
        case ref.Residual():
            return network(layer.branch)(x) + network(layer.shortcut)(x)
        case ref.Concat():
            return jnp.concatenate([network(branch)(x) for branch in layer.branches], -1)
        case ref.Gate():
            gate = network(layer.branch)(x)
            return x * (gate if gate.ndim == x.ndim else gate[None, None])
    raise TypeError(layer)


def convolution(layer, x):
    padding = layer.padding
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    y = lax.conv_general_dilated(
        x[None],
        jnp.asarray(layer.w, x.dtype),
        (layer.stride,) * 2,
        pads,
        rhs_dilation=(layer.dilation,) * 2,
        dimension_numbers=LAYOUT,
        feature_group_count=layer.groups,
    )[0]
    b = jnp.asarray(layer.b, x.dtype)
    return y + b.reshape((1,) * (y.ndim - b.ndim) + b.shape)


def window(reduce, start, layer, x):
    pads = [(layer.padding,) * 2] * 2 + [(0, 0)]
    sizes, strides = ((n, n, 1) for n in (layer.window, layer.stride))
    return lax.reduce_window(x, np.array(start, x.dtype), reduce, sizes, strides, pads)
