"""Relevance in PyTorch, for comparison: zennit's composite, and FG-CAM layer by layer.

FG-CAM is written here from its formulas as a PyTorch user would write it for torchvision's VGG and
ResNet: walk the modules, keep what each was fed with, and hand relevance back through each. A
convolution has the rule of the authors' code for any input, two products and two transposes; or
what is enough behind a ReLU, where no input is negative, and costs half of it.
"""

from copy import deepcopy
from functools import partial, reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PASSED = (nn.ReLU, nn.BatchNorm2d, nn.Dropout)
torch.backends.cudnn.allow_tf32 = False  # as jax, with "highest" precision


def program(explain, twin, images, labels):
    """Make ``explain(twin, x [N, 3, H, W], labels)`` a function of nothing that waits."""
    twin = twin.to(DEVICE)
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(DEVICE)
    y = torch.from_numpy(labels).to(DEVICE)

    def run():
        return explain(twin, x, y).detach().cpu().numpy()  # which waits for the device

    return run


def zennit_program(twin, images, labels):
    """EpsilonPlusFlat with normalisation merged, the sum over colours; registered once."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    canonizer = VGGCanonizer() if hasattr(twin, "features") else ResNetCanonizer()
    changed = deepcopy(twin).to(DEVICE)
    attributor = Gradient(changed, EpsilonPlusFlat(canonizers=[canonizer]))
    attributor.__enter__()  # for good: the time of registering it is not counted

    def explain(_, x, labels):
        def start(z):
            return z * F.one_hot(labels, z.shape[-1])

        return attributor(x, start)[1].sum(1)

    return program(explain, twin, images, labels)


def fg_cam_program(twin, images, labels):
    """FG-CAM from the last activation to the pixels, started by Grad-CAM."""
    return program(partial(fg_cam, any_sign), twin, images, labels)


def short_fg_cam_program(twin, images, labels):
    """The same, for convolutions behind a ReLU."""
    return program(partial(fg_cam, z_plus), twin, images, labels)


def fg_cam(rule, twin, x, labels):
    """Maps [N, H, W], signed; ``rule`` is that of convolutions."""
    body, head = parts(twin)
    with torch.no_grad():
        a, back = walk(body, x, rule, first=True)
    a = a.detach().requires_grad_()
    (g,) = torch.autograd.grad(head(a).gather(1, labels[:, None]).sum(), a)
    with torch.no_grad():
        components = g.mean((2, 3), keepdim=True) * a
        return back(torch.where(a == 0, 0, components)).sum(1)


def parts(twin):
    """The network up to its last activation, and the rest."""
    if hasattr(twin, "features"):
        pooled = nn.Sequential(twin.features[-1], twin.avgpool, nn.Flatten(), twin.classifier)
        return twin.features[:-1], pooled
    stem = (twin.conv1, twin.bn1, twin.relu, twin.maxpool)
    stages = (twin.layer1, twin.layer2, twin.layer3, twin.layer4)
    return nn.Sequential(*stem, *stages), nn.Sequential(twin.avgpool, nn.Flatten(), twin.fc)


def walk(module, x, rule, first=False):
    """What a module makes of x, and the function from relevance there to relevance at x."""
    if isinstance(module, nn.Sequential):
        backs = []
        for i, child in enumerate(module):
            x, back = walk(child, x, rule, first and i == 0)
            backs.append(back)
        return x, lambda r: reduce(lambda r, back: back(r), reversed(backs), r)
    if isinstance(module, nn.Conv2d):
        chosen = z_box if first else rule
        return module(x), lambda r: chosen(module, x, r)
    if isinstance(module, nn.MaxPool2d):
        y, winners = F.max_pool2d(
            x, module.kernel_size, module.stride, module.padding, return_indices=True
        )
        return y, lambda r: to_winners(torch.where(y == 0, 0, r), winners, x)
    if isinstance(module, PASSED):
        y = F.relu(x) if isinstance(module, nn.ReLU) else module(x)  # theirs overwrites x
        return y, lambda r: r
    return residual(module, x, rule)


def residual(block, x, rule):
    """A bottleneck: the sum of its branches is split by their positive parts."""
    layers = [block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU()]
    branch, back = walk(nn.Sequential(*layers, block.conv3, block.bn3), x, rule)
    shortcut, back_short = walk(block.downsample or nn.Sequential(), x, rule)

    def back_both(r):
        p, q = F.relu(branch), F.relu(shortcut)
        s = shares(r, p + q)
        return back(p * s) + back_short(q * s)

    return F.relu(branch + shortcut), back_both


def any_sign(conv, x, r):
    """x+ (W+^T s) + x- (W-^T s) with s = r / (W+ x+ + W- x-)."""
    return split(conv, r, [(F.relu(x), F.relu(conv.weight)), (-F.relu(-x), -F.relu(-conv.weight))])


def z_plus(conv, x, r):
    """x+ (W+^T s) with s = r / (W+ x+)."""
    return split(conv, r, [(F.relu(x), F.relu(conv.weight))])


def z_box(conv, x, r):
    """Between the least and the greatest value of each image."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    terms = [
        (x, conv.weight),
        (-low.expand_as(x), F.relu(conv.weight)),
        (high.expand_as(x), F.relu(-conv.weight)),
    ]
    return split(conv, r, terms)


def split(conv, r, terms):
    """Sum of x (W^T s) with s = r / (sum of W x), over the terms (x, W)."""
    s = shares(r, sum(product(conv, w, x) for x, w in terms))
    return sum(x * transpose(conv, w, s, x.shape) for x, w in terms)


def to_winners(r, winners, x):
    """Relevance of a max pool's output at the places that won."""
    flat = torch.zeros_like(x).flatten(2)
    return flat.scatter_add_(2, winners.flatten(2), r.flatten(2)).view_as(x)


def shares(r, z):
    """Of r, by z: r / z, and 0 where z is 0."""
    return torch.where(z == 0, 0, r / torch.where(z == 0, 1, z))


def product(conv, w, x):
    """The convolution with another kernel, without a bias."""
    return F.conv2d(x, w, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def transpose(conv, w, s, shape):
    """Its transpose."""
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return torch.nn.grad.conv2d_input(shape, w, s, *geometry)
