"""Slow, plain twin of LFI-CAM and ABN on the CIFAR ResNet, and of the IoU of their maps.

Lee, Park, Oh, Kwak 2021; Fukui et al. 2019. Written from the formulas in numpy, float64, apart from
the library: a batch x [B,H,W,3] in the network's input space, maps F [B,h,w,C], importance w [B,C],
attention A [B,h,w,1]. Layers and parameters are those of `reference_resnet`.
"""

from typing import NamedTuple

import numpy as np
from reference import min_max, resize_bilinear
from reference_resnet import (
    Block,
    Dense,
    Norm,
    Parameters,
    batch_norm,
    conv,
    conv_norm,
    dense,
    relu,
    stage,
)

# What turns maps into attention


def grey(x, size: tuple[int, int]) -> np.ndarray:
    """Mean of the channels as they come, then bilinear to `size`: [B,h,w,1]."""
    return np.stack([resize_bilinear(image.mean(2), size) for image in x])[..., None]


def unit_channel(f) -> np.ndarray:
    """(F - min) / (max - min) of one map [h,w]; 1 where it is constant; then 0 where F = 0."""
    spread = f.max() - f.min()
    s = (f - f.min()) / spread if spread > 0 else np.ones_like(f)
    return np.where(f == 0, 0.0, s)


def channel_min_max(features) -> np.ndarray:
    """S: `unit_channel` per image and channel."""
    channels = range(features.shape[3])
    return np.stack([np.stack([unit_channel(f[:, :, c]) for c in channels], 2) for f in features])


def masked_features(features, x) -> np.ndarray:
    """N = S g."""
    return channel_min_max(features) * grey(x, features.shape[1:3])


def softmax(z) -> np.ndarray:
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def unit_map(m) -> np.ndarray:
    """(M - min) / (max - min) of one map [h,w]; M itself where it is constant."""
    spread = m.max() - m.min()
    return (m - m.min()) / spread if spread > 0 else m


def attention_map(features, importance) -> np.ndarray:
    """A = unit_map(M) per image, M = ReLU(sum_c w_c F_c)."""
    if features.shape[1:3] == (1, 1):
        raise ValueError("a map of one position has no attention")
    m = np.maximum(np.einsum("bijc,bc->bij", features, importance), 0)
    return np.stack([unit_map(one) for one in m])[..., None]


def attend(features, attention) -> np.ndarray:
    """G = (1 + A) F."""
    return (1 + attention) * features


def effective_share(importance) -> np.ndarray:
    """exp(entropy(w)) / C: the share of the channels that count."""
    logs = np.log(np.where(importance > 0, importance, 1))
    return np.exp(-(importance * logs).sum(-1)) / importance.shape[-1]


# The networks


class Branch(NamedTuple):
    """What ABN adds."""

    stage: list[Block]
    norm: Norm  # after the stage, without ReLU
    to_classes: tuple  # 1x1, C -> K
    head: np.ndarray  # 1x1, K -> K
    to_map: tuple  # 3x3, K -> 1


class Net(NamedTuple):
    stem: tuple
    stages: list[list[Block]]
    fin: list | None
    branch: Branch | None
    dense: Dense


def cifar_resnet(parameters: Parameters, depth: int, classes: int, kind: str, width=16) -> Net:
    """`kind` is "baseline", "lfi" or "abn". Bottlenecks from depth 44."""
    deep = depth >= 44
    stem = parameters.conv_norm(3, width, 3)
    return resnet(parameters, stem, width, [(depth - 2) // 6] * 3, deep, classes, kind)


def resnet(p: Parameters, stem, width, counts, bottleneck, classes: int, kind: str) -> Net:
    """Stages of 1, 2, 4, ... times `width`; the first has stride 1, the others 2."""
    times, stages, branch, inputs = 4 if bottleneck else 1, [], None, width
    for l, n in enumerate(counts):
        outputs = width * 2**l
        if kind == "abn" and l == len(counts) - 1:
            branch = attention_branch(p, inputs, outputs, n, bottleneck, classes)
        stages.append(p.stage(inputs, outputs, n, 2 if l else 1, bottleneck))
        inputs = outputs * times
    layers = [p.conv_norm(inputs, inputs, 3) for _ in range(4)] if kind == "lfi" else None
    return Net(stem, stages, layers, branch, p.dense(inputs, classes))


def attention_branch(p: Parameters, inputs, width, n, bottleneck, classes: int) -> Branch:
    blocks, outputs = p.stage(inputs, width, n, 1, bottleneck), width * (4 if bottleneck else 1)
    norm, to_classes = p.norm(outputs), p.conv_norm(outputs, classes, 1)
    return Branch(blocks, norm, to_classes, p.conv(classes, classes, 1), p.conv_norm(classes, 1, 3))


def fin(x, layers, training: bool, kind: str = "paired") -> np.ndarray:
    """Four times conv, BN; ReLU after every second ("paired") or after each ("every"): maps."""
    for n, layer in enumerate(layers):
        x = conv_norm(x, layer, training)
        x = relu(x) if kind == "every" or n % 2 else x
    return x


def importance(features, x, layers, training: bool = False, kind: str = "paired") -> np.ndarray:
    """w = softmax(GAP(FIN(N)))."""
    return softmax(fin(masked_features(features, x), layers, training, kind).mean((1, 2)))


def lfi_cam(
    net: Net, x, training: bool = False, attention: str = "learned", kind: str = "paired"
) -> dict:
    """Logits Dense(GAP(G)), A, w, F and G; "uniform" has w = 1/C, "off" A = 0 (the baseline)."""
    f = relu(conv_norm(x, net.stem, training))
    for blocks in net.stages:
        f = stage(f, blocks, training)
    w = np.full((len(f), f.shape[3]), 1 / f.shape[3])
    if attention == "learned":
        w = importance(f, x, net.fin, training, kind)
    a = np.zeros((*f.shape[:3], 1)) if attention == "off" else attention_map(f, w)
    g = attend(f, a)
    logits = dense(g.mean((1, 2)), net.dense)
    return {"logits": logits, "attention": a, "importance": w, "features": f, "attended": g}


def abn(net: Net, x, training: bool = False) -> dict:
    """Logits of both heads, A = sigmoid(BN(conv(b))), last stage's maps of (1 + A) E."""
    e = relu(conv_norm(x, net.stem, training))
    for blocks in net.stages[:-1]:
        e = stage(e, blocks, training)
    branch = net.branch
    b = batch_norm(stage(e, branch.stage, training), branch.norm, training)
    b = relu(conv_norm(b, branch.to_classes, training))
    a = 1 / (1 + np.exp(-conv_norm(b, branch.to_map, training)))
    f = stage(attend(e, a), net.stages[-1], training)
    logits = dense(f.mean((1, 2)), net.dense)
    aux = conv(b, branch.head).mean((1, 2))
    return {"logits": logits, "aux_logits": aux, "attention": a, "features": f}


def cross_entropy(logits, labels) -> float:
    """Mean of -log softmax(logits)[label]."""
    return -np.mean([np.log(softmax(z)[k]) for z, k in zip(logits, labels, strict=True)])


# IoU of two maps [H,W]


def as_written(a) -> np.ndarray:
    """Bytes of a picture: 255 A, rounded to nearest, in three equal channels."""
    return np.stack([np.clip(np.rint(255 * a), 0, 255)] * 3, axis=2)


def reference_mask(a, threshold: int = 100, wrap: bool = True) -> np.ndarray:
    """256 (p - min) / max > threshold, [H,W,3] of the bytes p; with `wrap` 256 is 0."""
    v = np.floor(256 * min_max(as_written(a)))
    return (v % 256 if wrap else v) > threshold


def iou_ref(a, b, threshold: int = 100, wrap: bool = True, dice: bool = False) -> float:
    """Mean over *rows* of (I + s) / (U + s), s = 1e-6; dice: of 2 (I + s) / (I + I' + s)."""
    rows = []
    masks = (reference_mask(m, threshold, wrap) for m in (a, b))
    for p, q in zip(*masks, strict=True):
        both = (p & q).sum() + 1e-6
        rows.append(
            2 * both / (p.sum() + q.sum() + 1e-6) if dice else both / ((p | q).sum() + 1e-6)
        )
    return float(np.mean(rows))


def iou(p, q) -> float:
    """Of two masks; NaN where both are empty."""
    return float((p & q).sum() / (p | q).sum()) if (p | q).any() else np.nan


def image_iou(a, b, threshold: float = 100 / 256) -> float:
    """IoU of where the min-maxed maps pass the threshold."""
    return iou(min_max(a) > threshold, min_max(b) > threshold)
