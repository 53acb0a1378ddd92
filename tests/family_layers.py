"""The networks of `jaxfmi.models` up to their last features, as the layer lists of the twins."""

import numpy as np
from flax import nnx
from layer_nets import Activation
from reference_layers import (
    RELU,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    MaxPool,
    Residual,
)

from jaxfmi.models import densenet, mobilenet, resnet, squeezenet, vgg
from jaxfmi.models.layers import ConvNorm

RELU6 = Activation(lambda x: np.clip(x, 0, 6), lambda x: (x > 0) & (x < 6))


def filled(build):
    """A network without a head, and random numbers in all that its features need."""
    model = nnx.eval_shape(build)
    for head in {"head", "fc1", "fc2", "conv_final", "dropout"} & set(vars(model)):
        delattr(model, head)
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape = variable.shape
        if path[-1] == "kernel":
            values = rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
        elif path[-1] in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.2 * rng.standard_normal(shape)
        variable.set_value(values)
    return model


def layers_of(model) -> list:
    """All layers of `model.features`."""
    match model:
        case vgg.VGG():
            return _vgg(model)
        case resnet.ResNet():
            return _resnet(model)
        case squeezenet.SqueezeNet():
            return _squeezenet(model)
        case mobilenet.MobileNet():
            return _mobilenet(model)
        case densenet.DenseNet():
            return _densenet(model)
    raise TypeError(model)


def _vgg(model) -> list:
    blocks = [[part for c in block for part in (*_conv_norm(c), RELU)] for block in model.blocks]
    return blocks[0] + [part for block in blocks[1:] for part in (MaxPool(), *block)]


def _resnet(model) -> list:
    out = [*_conv_norm(model.stem), RELU, *([MaxPool(3, 2, 1)] if model.pool else [])]
    for block in (block for stage in model.stages for block in stage):
        branch = [part for c in block.convs for part in (*_conv_norm(c), RELU)][:-1]
        out += [Residual(branch, _shortcut(block)), RELU]
    return out


def _shortcut(block) -> list:
    if not isinstance(block.shortcut, resnet.PadShortcut):
        return _conv_norm(block.shortcut) if block.shortcut else []
    extra, outputs = block.shortcut.extra, block.convs[-1].conv.out_features
    same = np.eye(outputs)[extra : outputs - extra]
    return [Conv(same[None, None], stride=block.shortcut.stride)]


def _squeezenet(model) -> list:
    out = [*_conv_norm(model.conv1), RELU]
    for number, fire in enumerate(model.fires, 2):
        halves = [[*_conv_norm(c), RELU] for c in (fire.expand1x1, fire.expand3x3)]
        out += [MaxPool(3, 2)] if number in model.pools else []
        out += [*_conv_norm(fire.squeeze), RELU, Concat(halves)]
    return out


def _mobilenet(model) -> list:
    out = [*_conv_norm(model.stem), RELU6]
    for block in model.blocks:
        wide = [*_conv_norm(block.expand), RELU6] if block.expand else []
        branch = [*wide, *_conv_norm(block.depthwise), RELU6, *_conv_norm(block.project)]
        branch += [] if block.linear else [RELU6]
        out += [Residual(branch)] if block.residual else branch
    return [*out, *_conv_norm(model.last), RELU6] if model.last else out


def _densenet(model) -> list:
    out = [*_conv_norm(model.stem), RELU, MaxPool(3, 2, 1)]
    for b, layers in enumerate(model.blocks):
        for layer in layers:
            out.append(Concat([[], [*_norm_conv(layer.conv1), *_norm_conv(layer.conv2)]]))
        if b < len(model.transitions):
            out += [*_norm_conv(model.transitions[b]), AvgPool()]
    return out


def _norm_conv(part) -> list:
    return [_norm(part.norm), RELU, _conv(part.conv)]


def _conv_norm(part: ConvNorm) -> list:
    return [_conv(part.conv), *([_norm(part.norm)] if part.norm else [])]


def _conv(c: nnx.Conv) -> Conv:
    bias = 0.0 if c.bias is None else np.asarray(c.bias[...])
    stride = c.strides if isinstance(c.strides, int) else c.strides[0]
    return Conv(np.asarray(c.kernel[...]), bias, stride, c.padding, c.feature_group_count)


def _norm(n: nnx.BatchNorm) -> BatchNorm:
    fields = (n.scale, n.bias, n.mean, n.var)
    return BatchNorm(*(np.asarray(v[...]) for v in fields), n.epsilon)
