"""The networks of `jaxfmi.models` as the layer lists of the twins."""

import jax
import numpy as np
import reference_lficam as lficam
from flax import nnx
from layer_nets import logistic
from reference_layers import (
    RELU,
    Activation,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Flatten,
    Gate,
    GlobalAvgPool,
    MaxPool,
    Reflect,
    Residual,
    Tag,
    forward,
    leaky_relu,
)

from jaxfmi.models import (
    abn,
    demo,
    densenet,
    embedding,
    layers,
    lfi_cam,
    mobilenet,
    resnet,
    squeezenet,
    vgg,
)

LAST = "last"  # the tag of the last feature maps
RELU6 = Activation(lambda x: np.clip(x, 0, 6), lambda x: (x > 0) & (x < 6))
LEAKY = leaky_relu(0.1)
ATTEND = Activation(lambda x: 1 + logistic(x), lambda x: logistic(x) * logistic(-x))


def fill(model: nnx.Module, bias: bool) -> None:
    """Give a network random numbers; without `bias` it adds nothing anywhere."""
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape = variable.shape
        if path[0] == "dropout":
            values = jax.random.key(0)
        elif path[-1] == "kernel":
            values = rng.standard_normal(shape) * (2 / np.prod(shape[:-1])) ** 0.5
        elif path[-1] in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.2 * bias * rng.standard_normal(shape)
        variable.set_value(values)


def layers_of(model, x) -> list:
    """All layers from the picture `x`, on which gates may depend, to logits or an embedding."""
    return [*_features(model, x), Tag(LAST), *_head(model)]


def _features(model, x) -> list:
    match model:
        case vgg.VGG():
            return _vgg(model)
        case resnet.ResNet():
            return [*_stem(model), *_residuals(model.stages)]
        case squeezenet.SqueezeNet():
            return [*_squeezenet(model), *_conv_norm(model.conv_final), RELU]
        case mobilenet.MobileNet():
            return _mobilenet(model)
        case densenet.DenseNet():
            return [*_densenet(model), _norm(model.norm5), RELU]
        case demo.DemoNet():
            return _demo(model)
        case embedding.Conv4():
            return _conv4(model)
        case embedding.ResNet12():
            return [part for block in model.blocks for part in _block12(block)]
        case embedding.Projected():
            return _features(model.backbone, x)
        case lfi_cam.LfiCam():
            return [*_features(model.backbone, x), _lfi_cam_gate(model.fin, x)]
        case abn.Abn():
            stem, stages = _stem(model.backbone), model.backbone.stages
            gate = _abn_gate(model.branch)
            return [*stem, *_residuals(stages[:-1]), gate, *_residuals(stages[-1:])]
    raise TypeError(model)


def _head(model) -> list:
    match model:
        case vgg.VGG():
            dense = [_dense(model.fc1), RELU, _dense(model.fc2), RELU, _dense(model.head)]
            return [MaxPool(), AvgPool(), Flatten(), *dense]  # pooled to 14x14, then to 7x7
        case embedding.Conv4() if model.flatten:
            return [Flatten()]
        case squeezenet.SqueezeNet() | embedding.Conv4() | embedding.ResNet12():
            return [GlobalAvgPool()]
        case embedding.Projected():
            projection = [_dense(model.head.hidden), RELU, _dense(model.head.out)]
            return [*_head(model.backbone), *projection]
        case lfi_cam.LfiCam() | abn.Abn():
            return _head(model.backbone)
    return [GlobalAvgPool(), _dense(model.head)]


def _vgg(model) -> list:
    blocks = [[part for c in block for part in (*_conv_norm(c), RELU)] for block in model.blocks]
    return blocks[0] + [part for block in blocks[1:] for part in (MaxPool(), *block)]


def _stem(model) -> list:
    return [*_conv_norm(model.stem), RELU, *([MaxPool(3, 2, 1)] if model.pool else [])]


def _residuals(stages) -> list:
    out = []
    for block in (block for stage in stages for block in stage):
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
    for b, block in enumerate(model.blocks):
        for layer in block:
            out.append(Concat([[], [*_norm_conv(layer.conv1), *_norm_conv(layer.conv2)]]))
        if b < len(model.transitions):
            out += [*_norm_conv(model.transitions[b]), AvgPool()]
    return out


def _demo(model) -> list:
    out = [*_conv_norm(model.stem), RELU]
    for block in model.blocks:
        branch = [*_conv_norm(block.conv1), RELU, *_conv_norm(block.conv2)]
        shortcut = [AvgPool(block.stride, block.stride)] if block.stride > 1 else []
        shortcut += _conv_norm(block.shortcut) if block.shortcut else []
        out += [Residual(branch, shortcut), RELU]
    return out


def _conv4(model) -> list:
    out = []
    for number, block in enumerate(model.blocks, 1):
        out += [*_conv_norm(block), RELU, *([MaxPool()] if number in model.pools else [])]
    return out


def _block12(block) -> list:
    branch = [part for c in block.convs for part in (*_conv_norm(c), LEAKY)][:-1]
    return [Residual(branch, _conv_norm(block.shortcut)), LEAKY, MaxPool()]


def _lfi_cam_gate(fin, x) -> Gate:
    """1 + A, which has no gradient here: nothing that is tested asks for it."""
    convs = []
    for i, conv in enumerate(fin.convs):
        convs += [*_conv_norm(conv), *([RELU] if fin.form == "every" or i % 2 else [])]

    def attention(f):
        maps = forward(convs, lficam.masked_features(f[None], x[None])[0])[-1]
        return lficam.attention_map(f[None], lficam.softmax(maps.mean((0, 1)))[None])[0]

    return Gate([Activation(lambda f: 1 + attention(f), None)])


def _abn_gate(branch) -> Gate:
    """1 + A."""
    stage = [*_residuals([branch.stage.layers]), _norm(branch.norm)]
    classes = [*_conv_norm(branch.to_classes), RELU]
    return Gate([*stage, *classes, *_conv_norm(branch.to_map), ATTEND])


def _norm_conv(part) -> list:
    return [_norm(part.norm), RELU, *_conv(part.conv)]


def _conv_norm(part: layers.ConvNorm | demo.ConvNorm) -> list:
    return [*_conv(part.conv), *([_norm(part.norm)] if part.norm else [])]


def _conv(c: nnx.Conv) -> list:
    bias = 0.0 if c.bias is None else np.asarray(c.bias[...])
    stride = c.strides if isinstance(c.strides, int) else c.strides[0]
    edges = [Reflect(c.kernel_size[0] // 2)] if c.padding == "REFLECT" else []
    padding = 0 if c.padding in ("REFLECT", "VALID") else c.padding
    return [*edges, Conv(np.asarray(c.kernel[...]), bias, stride, padding, c.feature_group_count)]


def _dense(layer: nnx.Linear | nnx.LinearGeneral) -> Dense:
    bias = np.asarray(layer.bias[...])
    return Dense(np.asarray(layer.kernel[...]).reshape(-1, bias.size), bias)


def _norm(n: nnx.BatchNorm) -> BatchNorm:
    fields = (n.scale, n.bias, n.mean, n.var)
    return BatchNorm(*(np.asarray(v[...]) for v in fields), n.epsilon)
