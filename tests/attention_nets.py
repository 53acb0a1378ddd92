"""LFI-CAM and ABN of depth 8 with the closed-form weights of the golden arrays, and their training.

Everything is a pure function of a state, so that a test compiles it once.
"""

import functools

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxfmi.models import abn_resnet8, lfi_cam_resnet8

CLASSES, LABELS = 3, np.array([0, 1, 2, 1])
BUILD = {"lfi": lfi_cam_resnet8, "abn": abn_resnet8}
HEADS = ("logits", "aux_logits")


def conv_norm(layer):
    return [layer.conv.kernel, *norm(layer.norm)]


def norm(layer):
    return [layer.scale, layer.bias]


def blocks(stage):
    parts = (layer for block in stage for layer in (*block.convs, block.shortcut))
    return [weight for part in parts if part is not None for weight in conv_norm(part)]


def registered(model):
    """The parameters in the order in which torch registers them."""
    net, branch = model.backbone, getattr(model, "branch", None)
    weights = [*conv_norm(net.stem), *blocks(net.stages[0]), *blocks(net.stages[1])]
    if branch:
        weights += [*blocks(branch.stage.layers), *norm(branch.norm)]
        weights += [*conv_norm(branch.to_classes), branch.to_logits.conv.kernel]
        weights += conv_norm(branch.to_map)
    weights += blocks(net.stages[2])
    fin = model.fin.convs if getattr(model, "fin", None) else []
    return [*weights, *(w for conv in fin for w in conv_norm(conv)), net.head.kernel, net.head.bias]


def closed_form(t, weight, scale):
    """Parameter t, as the golden arrays have it: from torch's order of axes to ours."""
    shape = weight.shape[:-3:-1] + weight.shape[:-2]
    i = np.arange(np.prod(shape), dtype=float)
    s = np.sin(0.7 * i + 1.3 * t + 0.1 * i**1.1).reshape(shape)
    if len(shape) == 4:
        return (1.4 * s * np.sqrt(2 / np.prod(shape[1:]))).transpose(2, 3, 1, 0)
    return 0.5 * s.T if len(shape) == 2 else 1 + 0.2 * s if scale else 0.1 * s


@functools.cache
def golden_net(kind):
    """``(graph, state)`` of a network in float64, in evaluation mode; needs float64 enabled."""
    model = filled(lambda: BUILD[kind](num_classes=CLASSES))
    scales = {id(m.scale) for _, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)}
    for t, weight in enumerate(registered(model)):
        weight.set_value(jnp.asarray(closed_form(t, weight, id(weight) in scales)))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.mean.set_value(jnp.zeros(module.mean.shape))
            module.var.set_value(jnp.ones(module.var.shape))
    return nnx.split(model)


def filled(build, dtype=jnp.float64):
    """A network with random numbers of one type, also in its statistics, made without compiling."""
    model, normal = nnx.eval_shape(build), np.random.default_rng(0).standard_normal
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        values = normal(variable.shape)
        if len(variable.shape) > 1:
            values = values * np.sqrt(2 / np.prod(variable.shape[:-1]))
        else:
            values = 0.1 * values + (path[-1] in ("scale", "var"))
        variable.set_value(jnp.asarray(values, dtype))
    nnx.update(model, state)
    return model


def merge(graph, state, training=False):
    model = nnx.merge(graph, state, copy=True)
    model.train() if training else model.eval()
    return model


def forward(graph, state, x, training=False):
    return merge(graph, state, training).forward(x)


def loss_fn(out, labels):
    """One cross-entropy for each head: what both methods minimise."""
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return sum(entropy(out[k], labels).mean() for k in HEADS if k in out)


def gradients(graph, state, x, labels=LABELS):
    """Loss, outputs and gradients of a training pass, and the state that it leaves."""
    model = merge(graph, state, training=True)

    def loss(model):
        out = model.forward(x)
        return loss_fn(out, labels), out

    (value, out), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    return value, out, grads, nnx.state(model)


def descent(graph, state, x, steps=4, labels=LABELS):
    """Losses of steps of SGD(.1, momentum .9, weight decay 5e-4), and the state after them."""
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    moments, losses = tx.init(nnx.state(merge(graph, state), nnx.Param)), []
    for _ in range(steps):
        loss, _, grads, state = gradients(graph, state, x, labels)
        model = merge(graph, state)
        weights = nnx.state(model, nnx.Param)
        updates, moments = tx.update(grads, moments, weights)
        nnx.update(model, optax.apply_updates(weights, updates))
        state, losses = nnx.state(model), [*losses, loss]
    return jnp.stack(losses), state


def closed_form_images():
    """The input of the golden arrays, [4, 32, 32, 3], and of any other size."""
    b, h, w, c = np.meshgrid(*map(np.arange, (4, 32, 32, 3)), indexing="ij")
    wave = np.sin(0.21 * h * (b + 1) + 0.5 * c) * np.cos(0.17 * w + 0.9 * b)
    return wave + 0.3 * np.sin(0.05 * h * w + c)
