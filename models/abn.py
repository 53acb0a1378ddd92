"""ABN, the attention branch network (Fukui, Hirakawa, Yamashita and Fujiyoshi, 2019).

E are the maps before the last stage. A branch with a stage of its own makes of them one map per
class, b, from these a map A = sigmoid(...) and logits; the last stage sees (1 + A) ⊙ E. The loss is
the sum of the cross-entropies of both heads. The layers are those of the authors' code: a 3×3
convolution with batch normalisation makes A, where the paper has a 1×1. Nothing ties a high A to
evidence, for the last stage can undo it: maps can come out inverted.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, Unpack

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.explainer import wide
from jaxfmi.models.densenet import densenet_bc
from jaxfmi.models.layers import ConvNorm, Options, batch_norm, draw_as_torch
from jaxfmi.models.lfi_cam import Backbone, attend
from jaxfmi.models.resnet import projected_resnet, resnet18, resnet50
from jaxfmi.taps import tag


class Staged(Backbone, Protocol):
    """What a backbone must offer to be given an attention branch."""

    def early(self, x: jax.Array) -> jax.Array:
        """Pictures -> what enters the last stage, `[N, h, w, C]`."""
        ...

    def last_stage(self, x: jax.Array) -> jax.Array:
        """What enters the last stage -> the last maps."""
        ...

    def stage_of_stride_1(self, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
        """The last stage again, with weights of its own, that keeps the size and has no tags."""
        ...


class AttentionBranch(nnx.Module):
    """Maps before the last stage `[N, h, w, C]` -> A `[N, h, w, 1]` and logits `[N, classes]`."""

    def __init__(self, backbone: Staged, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        classes, kinds = backbone.head.out_features, {"dtype": dtype, "rngs": rngs}
        self.stage = backbone.stage_of_stride_1(rngs)
        self.norm = batch_norm(backbone.maps, **kinds)
        self.to_classes = ConvNorm(backbone.maps, classes, 1, **kinds)
        self.to_logits = ConvNorm(classes, classes, 1, norm=False, bias=False, **kinds)
        self.to_map = ConvNorm(classes, 1, 3, **kinds)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The map, float32, and the branch's own logits."""
        b = jax.nn.relu(self.to_classes(self.norm(self.stage(x))))
        return jax.nn.sigmoid(wide(self.to_map(b))), self.to_logits(b).mean((1, 2))


class Abn(nnx.Module):
    """A backbone with an attention branch `[N, H, W, channels] -> [N, num_classes]`, in eval mode.

    Beside the backbone's own tags there are `attention` (A `[N, h, w, 1]`) and `attended`
    ((1 + A) ⊙ E), both before those of the last stage. The branch's weights are drawn as the
    authors do; the backbone keeps those that it has.
    """

    def __init__(
        self, backbone: Staged, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs | None = None
    ):
        rngs = rngs or nnx.Rngs(0)
        self.backbone = backbone
        self.branch = AttentionBranch(backbone, dtype=dtype, rngs=rngs)
        draw_as_torch(self.branch, rngs)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`: those that count."""
        return self.forward(x)["logits"]

    def forward(self, x: jax.Array) -> dict[str, jax.Array]:
        """`logits`, the branch's `aux_logits`, `attention` A, `features` of the last stage."""
        early = self.backbone.early(x)
        attention, aux_logits = self.branch(early)
        attention = tag(attention, "attention")
        features = self.backbone.last_stage(tag(attend(early, attention), "attended"))
        logits = self.backbone.classify(features)
        found = {"attention": attention, "features": features}
        return {"logits": logits, "aux_logits": aux_logits} | found

    def features(self, x: jax.Array) -> jax.Array:
        """The last maps `[N, h, w, C]`, that are classified."""
        return self.forward(x)["features"]


class CifarOptions(Options, total=False):
    """`Options`, and `width`, that of the first stage (16)."""

    width: int


def abn(build: Callable[..., Staged], options: Options) -> Abn:
    """Give an attention branch to the backbone that `build` makes of the options."""
    rngs, dtype = options.get("rngs") or nnx.Rngs(0), options.get("dtype")
    backbone = build(**{**options, "rngs": rngs})
    draw_as_torch(backbone, rngs)
    return Abn(backbone, dtype=dtype, rngs=rngs)


def abn_resnet8(**options: Unpack[CifarOptions]) -> Abn:
    """ABN ResNet-8, for small experiments; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 8), options)


def abn_resnet20(**options: Unpack[CifarOptions]) -> Abn:
    """ABN ResNet-20 for 32×32 images and 10 classes; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 20), options)


def abn_resnet32(**options: Unpack[CifarOptions]) -> Abn:
    """ABN ResNet-32 for 32×32 images and 10 classes; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 32), options)


def abn_resnet44(**options: Unpack[CifarOptions]) -> Abn:
    """ABN "ResNet-44", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 44), options)


def abn_resnet56(**options: Unpack[CifarOptions]) -> Abn:
    """ABN "ResNet-56", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 56), options)


def abn_resnet110(**options: Unpack[CifarOptions]) -> Abn:
    """ABN "ResNet-110", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return abn(partial(projected_resnet, 110), options)


def abn_densenet100(**options: Unpack[Options]) -> Abn:
    """ABN DenseNet-BC, depth 100 and growth 12, for 32×32 images; `options` as in `Options`."""
    return abn(partial(densenet_bc, 100, 12), options)


def abn_resnet18(**options: Unpack[Options]) -> Abn:
    """ABN ResNet-18 for 224×224 images, with a 14×14 map; `options` as in `Options`."""
    return abn(resnet18, options)


def abn_resnet50(**options: Unpack[Options]) -> Abn:
    """ABN ResNet-50 for 224×224 images, with a 14×14 map; `options` as in `Options`."""
    return abn(resnet50, options)
