"""LFI-CAM (Lee, Park, Oh and Kwak, 2021): a network that makes a map of attention and uses it.

g = downscaled grey x; S = min-max(F) per channel; w = softmax(mean(FIN(S ⊙ g)));
A = min-max(relu(Σ_c w_c F_c)); G = (1 + A) ⊙ F; logits = head(G); the loss is the cross-entropy.

F [N, h, w, C] are the last maps of any backbone, FIN is the feature importance network. The map
takes one forward pass, no gradient and no class: it is the same for every label. The paper beyond
its abstract was not available to us; formulas are those of the authors' code (`resnet_lfiv2.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxfmi.explainer import wide
from jaxfmi.models.densenet import densenet_bc
from jaxfmi.models.layers import ConvNorm, Options, draw_as_torch
from jaxfmi.models.resnet import projected_resnet, resnet18, resnet50
from jaxfmi.models.vgg import vgg16_bn
from jaxfmi.taps import tag

Attention = Literal["learned", "uniform", "off", "deep"]
Form = Literal["paired", "every"]
CONVOLUTIONS = 4  # of the feature importance network


class Backbone(Protocol):
    """What a network must offer to be given attention; those of this package do."""

    head: Any

    @property
    def maps(self) -> int:
        """The number of channels of `features`."""
        ...

    def features(self, x: jax.Array) -> jax.Array:
        """Pictures `[N, H, W, channels]` -> the last maps `[N, h, w, C]`, tagged."""
        ...

    def classify(self, x: jax.Array) -> jax.Array:
        """Last maps -> logits `[N, num_classes]`."""
        ...


def masked_features(features: jax.Array, image: jax.Array) -> jax.Array:
    """Each map, scaled to [0, 1], times a grey picture of its size: `[..., h, w, C]`, float32.

    Grey is the mean over the channels as they come, signed where they are. The picture is brought
    to the maps bilinearly, with half-pixel centres and without antialiasing.

    Args:
      features: F `[..., h, w, C]`.
      image: x `[..., H, W, channels]`, as the network takes it.
    """
    grey = wide(image).mean(-1, keepdims=True)
    size = (*grey.shape[:-3], *features.shape[-3:-1], 1)
    return _unit_channels(wide(features)) * jax.image.resize(
        grey, size, "bilinear", antialias=False
    )


def _unit_channels(features: jax.Array) -> jax.Array:
    """(F - min) / (max - min) over positions; 1 where F is constant, then 0 where F is 0."""
    scaled = _unit(features, constant=jnp.ones_like(features))
    return jnp.where(features == 0, 0, scaled)


def attention_map(features: jax.Array, importance: jax.Array) -> jax.Array:
    """The map A `[..., h, w, 1]`, float32: Σ_c w_c F_c, its negative part cut, scaled to [0, 1].

    Where the sum is the same everywhere it is left as it is, as in the authors' code.

    Args:
      features: F `[..., h, w, C]`.
      importance: w `[..., C]`.

    Raises:
      ValueError: the maps are 1×1, so that every sum is constant.
    """
    if features.shape[-3:-1] == (1, 1):
        raise ValueError(
            f"attention has to choose between positions, the maps have one: {features.shape}"
        )
    mixed = jax.nn.relu(jnp.einsum("...hwc,...c->...hw", wide(features), wide(importance)))
    return _unit(mixed[..., None], constant=mixed[..., None])


def attend(features: jax.Array, attention: jax.Array) -> jax.Array:
    """G = (1 + A) ⊙ F: maps `[..., h, w, C]`, stronger where the map `[..., h, w, 1]` is high."""
    return (1 + attention) * features


def _unit(x: jax.Array, constant: jax.Array) -> jax.Array:
    """(x - min) / (max - min) over positions; `constant` where that is 0/0. Finite gradients.

    The extremes are taken by their index, so that one position gets their gradient, as in torch.
    That of `jnp.max` goes to where x equals its maximum, and is lost where XLA computes x a second
    time with another rounding.
    """
    flat = x.reshape(*x.shape[:-3], -1, x.shape[-1])
    places = (f(flat, -2, keepdims=True) for f in (jnp.argmin, jnp.argmax))
    low, high = (jnp.take_along_axis(flat, i, -2)[..., None, :] for i in places)
    varies = high > low
    return jnp.where(varies, (x - low) / jnp.where(varies, high - low, 1), constant)


class Importance(nnx.Module):
    """FIN: four normalised 3×3 convolutions `[N, h, w, C] -> [N, h, w, C]`, rectified at the end.

    There is a ReLU after each pair of convolutions ("paired", in the authors' networks for CIFAR),
    or after every one ("every", in those for ImageNet).
    """

    def __init__(self, maps: int, form: Form = "paired", *, dtype: DTypeLike | None, rngs):
        if form not in ("paired", "every"):
            raise ValueError(f"fin is 'paired' or 'every', got {form!r}")
        self.form = form
        kinds = {"dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(ConvNorm(maps, maps, 3, **kinds) for _ in range(CONVOLUTIONS))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The maps whose averages tell how important each channel is."""
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = jax.nn.relu(x) if self.form == "every" or i % 2 else x
        return x


class LfiCam(nnx.Module):
    """A backbone with attention `[N, H, W, channels] -> [N, num_classes]`, in evaluation mode.

    Beside the backbone's own tags, of which the last is F, there are `importance` (w `[N, C]`),
    `attention` (A `[N, h, w, 1]`) and `attended` (G `[N, h, w, C]`). All that makes the map
    computes in float32, whatever the convolutions do.

    `attention` is "learned", or one of the controls of an experiment: "uniform" has w = 1/C and no
    FIN; "off" is the backbone alone (its A would be 0); "deep" puts FIN's convolutions in
    series, F' = FIN(F), tagged `deep`: no attention, and as many parameters as LFI-CAM. FIN's
    weights are drawn as the authors do; the backbone keeps those that it has.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        attention: Attention = "learned",
        fin: Form = "paired",
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        if attention not in (kinds := ("learned", "uniform", "off", "deep")):
            raise ValueError(f"attention is one of {kinds}, got {attention!r}")
        rngs = rngs or nnx.Rngs(0)
        self.backbone, self.attention = backbone, attention
        maps, learned = backbone.maps, attention in ("learned", "deep")
        self.fin = Importance(maps, fin, dtype=dtype, rngs=rngs) if learned else None
        if self.fin is not None:
            draw_as_torch(self.fin, rngs)
        self.eval()

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits `[N, num_classes]` of `x` `[N, H, W, channels]`."""
        return self.forward(x)["logits"]

    def forward(self, x: jax.Array) -> dict[str, jax.Array]:
        """`logits`, `features` F, and with attention `attention` A and `importance` w."""
        classified, found = self._maps(x)
        return {"logits": self.backbone.classify(classified)} | found

    def features(self, x: jax.Array) -> jax.Array:
        """The maps `[N, h, w, C]` that are classified: G, or without attention F."""
        return self._maps(x)[0]

    def _maps(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The maps that are classified, and what there is to know of how they came about."""
        features = self.backbone.features(x)
        if self.attention == "off":
            return features, {"features": features}
        if self.attention == "deep" and self.fin:
            features = tag(self.fin(features), "deep")
            return features, {"features": features}
        importance = tag(self.importance(features, x), "importance")
        attention = tag(attention_map(features, importance), "attention")
        attended = tag(attend(features, attention), "attended")
        return attended, {"attention": attention, "importance": importance, "features": features}

    def importance(self, features: jax.Array, x: jax.Array) -> jax.Array:
        """The weights w `[N, C]` of the maps, which are positive and add up to 1."""
        if self.fin is None:
            return jnp.full((len(features), features.shape[-1]), 1 / features.shape[-1])
        pooled = wide(self.fin(masked_features(features, x))).mean((1, 2))
        return jax.nn.softmax(pooled)


class LfiCamOptions(Options, total=False):
    """`Options`, and those of `LfiCam`: `attention` and `fin`."""

    attention: Attention
    fin: Form


class CifarOptions(LfiCamOptions, total=False):
    """`LfiCamOptions`, and `width`, that of the first stage (16)."""

    width: int


def lfi_cam(build: Callable[..., Backbone], options: LfiCamOptions, fin: Form = "paired") -> LfiCam:
    """Give attention to the backbone that `build` makes of those options that are not LFI-CAM's."""
    rngs = options.get("rngs") or nnx.Rngs(0)
    attention, fin = options.get("attention", "learned"), options.get("fin", fin)
    rest = {k: v for k, v in options.items() if k not in ("attention", "fin", "rngs")}
    backbone = build(**rest, rngs=rngs)
    draw_as_torch(backbone, rngs)
    return LfiCam(backbone, attention=attention, fin=fin, dtype=options.get("dtype"), rngs=rngs)


def lfi_cam_resnet8(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM ResNet-8, for small experiments; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 8), options)


def lfi_cam_resnet20(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM ResNet-20 for 32×32 images and 10 classes; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 20), options)


def lfi_cam_resnet32(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM ResNet-32 for 32×32 images and 10 classes; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 32), options)


def lfi_cam_resnet44(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM "ResNet-44", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 44), options)


def lfi_cam_resnet56(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM "ResNet-56", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 56), options)


def lfi_cam_resnet110(**options: Unpack[CifarOptions]) -> LfiCam:
    """LFI-CAM "ResNet-110", of bottlenecks, for 32×32; `options` as in `CifarOptions`."""
    return lfi_cam(partial(projected_resnet, 110), options)


def lfi_cam_densenet100(**options: Unpack[LfiCamOptions]) -> LfiCam:
    """LFI-CAM DenseNet-BC, depth 100 and growth 12, for 32×32; `options` as in `LfiCamOptions`."""
    return lfi_cam(partial(densenet_bc, 100, 12), options)


def lfi_cam_resnet18(**options: Unpack[LfiCamOptions]) -> LfiCam:
    """LFI-CAM ResNet-18 for 224×224, with 14×14 maps; `options` as in `LfiCamOptions`."""
    return lfi_cam(partial(resnet18, stem="fine"), options, fin="every")


def lfi_cam_resnet50(**options: Unpack[LfiCamOptions]) -> LfiCam:
    """LFI-CAM ResNet-50 for 224×224, with 14×14 maps; `options` as in `LfiCamOptions`."""
    return lfi_cam(partial(resnet50, stem="fine"), options, fin="every")


def lfi_cam_vgg16_bn(**options: Unpack[LfiCamOptions]) -> LfiCam:
    """LFI-CAM on VGG-16 with batch normalisation, not the authors'; options as `LfiCamOptions`."""
    return lfi_cam(vgg16_bn, options)
