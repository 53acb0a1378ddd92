"""Networks as lists of `reference_layers`: the golden one, and random ones with branches."""

import numpy as np
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
    Residual,
    Tag,
)


def golden_net(arrays, norm_pool=False) -> list:
    """The golden VGG with a tag "t" wherever there are FG-CAM maps of t.

    `norm_pool`: with the average pool of 1x1 that zennit's arrays have before the flatten.
    """

    def fields(name, *names):
        return [arrays[f"param/{name}.{field}"] for field in names]

    def block(i):
        w, b = fields(f"features.{i}", "weight", "bias")
        stored = fields(f"features.{i + 1}", "weight", "bias", "running_mean", "running_var")
        return [Conv(w.transpose(2, 3, 1, 0), b, padding=1), BatchNorm(*stored), RELU]

    def dense(i):
        w, b = fields(f"classifier.{i}", "weight", "bias")
        return Dense(w.T, b)

    low = [*block(0), Tag("2"), *block(3), MaxPool(), Tag("6")]
    high = [*block(7), *block(10), Tag("12"), MaxPool(), Tag("13")]
    pool = [AvgPool(1, 1)] if norm_pool else []
    return [*low, *high, *pool, Flatten((2, 0, 1)), dense(0), RELU, dense(2)]


def logistic(x):
    return 1 / (1 + np.exp(-x))


SIGMOID = Activation(logistic, lambda x: logistic(x) * logistic(-x))
SILU = Activation(lambda x: x * logistic(x), lambda x: logistic(x) + x * logistic(x) * logistic(-x))


def residual_net(
    seed=0, *, bias=True, signed=False, act: Activation = RELU, extras=True, classes=5
) -> list:
    """Two residual blocks, the second downsampling; tags "pool", "block1", "block2", "last".

    `signed`: BatchNorm scales of either sign; `bias`: also the shifts and means of BatchNorm;
    `extras`: then branches that are concatenated, and a squeeze-excitation gate.
    """
    normal = np.random.default_rng(seed).standard_normal

    def conv(i, o, k=3, groups=1, stride=1):
        w = normal((k, k, i // groups, o)) / (k * i**0.5)
        return Conv(w, normal(o) / 5 * bias, stride, k // 2, groups)

    def unit(i, o, *args, **kw):
        scale = normal(o) if signed else 0.5 + abs(normal(o))
        stored = (normal(o) / 5 * bias, normal(o) / 5 * bias, 0.5 + abs(normal(o)))
        return [conv(i, o, *args, **kw), BatchNorm(scale, *stored)]

    inner = [*unit(4, 6, stride=2), act, *unit(6, 6, groups=2)]
    pooled = [AvgPool(3, 1, 1), conv(6, 2, 1), act]
    gate = [GlobalAvgPool(), Dense(normal((12, 3))), act, Dense(normal((3, 12))), SIGMOID]
    more = [Concat([[conv(6, 4), act], pooled, []]), Gate(gate)] if extras else []
    return [
        *[*unit(3, 4), act, MaxPool(3, 2, 1), Tag("pool")],
        *[Residual([*unit(4, 4), act, *unit(4, 4)]), act, Tag("block1")],
        *[Residual(inner, unit(4, 6, k=1, stride=2)), act, Tag("block2")],
        *[*more, Tag("last"), GlobalAvgPool()],
        Dense(normal((12 if extras else 6, classes)), normal(classes) * bias),
    ]
