"""MobileNet V1 and V2 in plain numpy, written from the words of the data's README alone.

Folded weights, padding as in TensorFlow, index 0 is the background. One image, no batch.
"""

import numpy as np

V1 = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # strides of the depthwise convolutions
V2 = (  # expansion, width, blocks, stride of the first
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def patches(x, stride):
    """The nine neighbours [3, 3, h, w, C] of every output place, zeros around the image."""
    sizes = [-(-n // stride) for n in x.shape[:2]]
    total = [max((m - 1) * stride + 3 - n, 0) for m, n in zip(sizes, x.shape[:2], strict=True)]
    padded = np.pad(x, [*((t // 2, t - t // 2) for t in total), (0, 0)])
    ends = [(m - 1) * stride + 1 for m in sizes]
    return np.stack(
        [
            [padded[i : i + ends[0] : stride, j : j + ends[1] : stride] for j in range(3)]
            for i in range(3)
        ]
    )


class Weights:
    """The entries of a file in the order in which the network runs."""

    def __init__(self, file):
        names = sorted(file)
        self.conv, self.dw = (
            iter(
                [
                    (np.float64(file[n]), np.float64(file[n.replace("kernel", "bias")]))
                    for n in names
                    if n.startswith(kind) and n.endswith("kernel")
                ]
            )
            for kind in ("conv", "dw")
        )

    def full(self, x, stride=1):
        kernel, bias = next(self.conv)
        if kernel.shape[:2] == (1, 1):
            return x @ kernel[0, 0] + bias
        return np.einsum("ijhwc,ijco->hwo", patches(x, stride), kernel) + bias

    def depthwise(self, x, stride):
        kernel, bias = next(self.dw)
        return np.einsum("ijhwc,ijc->hwc", patches(x, stride), kernel[:, :, 0]) + bias


def relu6(x):
    return np.clip(x, 0, 6)


def mobilenet_v1(file, x):
    net = Weights(file)
    x = relu6(net.full(x, 2))
    for stride in V1:
        x = relu6(net.full(relu6(net.depthwise(x, stride))))
    return net.full(x.mean((0, 1)))


def mobilenet_v2(file, x):
    net = Weights(file)
    x = relu6(net.full(x, 2))
    for expansion, width, blocks, first in V2:
        for stride in (first, *[1] * (blocks - 1)):
            wide = relu6(net.full(x)) if expansion > 1 else x
            y = net.full(relu6(net.depthwise(wide, stride)))
            x = x + y if stride == 1 and x.shape[-1] == width else y
    return net.full(relu6(net.full(x)).mean((0, 1)))
