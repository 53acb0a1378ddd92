"""From a picture of any kind to the numbers that a network was trained on, and back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jax.typing import ArrayLike
from PIL import Image, ImageOps

Colours = tuple[float, ...]


@dataclass(frozen=True)
class Preprocess:
    """Turns a PIL image into an input `(pixels / scale - mean) / std`, float32 `[H, W, C]`.

    size: height and width. The whole picture is resized to it (bilinear, antialiased), whatever
        its shape: nothing is cropped, so that every pixel of the picture is explained.
    mean, std: per channel, in `order`.
    order: "RGB", "BGR" for weights from Caffe, or "L" for one channel, grey.
    scale: what pixels of 0 to 255 are divided by first. Below 0 it turns light and dark around:
        with -255 and a mean of -1, black ink on white paper is 1 on 0.
    """

    size: tuple[int, int]
    mean: Colours
    std: Colours = (1.0,)
    order: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 255.0

    def __post_init__(self):
        """Raise ValueError for an order that there is not, or numbers that do not fit it."""
        if self.order not in ("RGB", "BGR", "L"):
            raise ValueError(f"the order of channels is RGB, BGR or L, got {self.order!r}")
        channels = self.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                given = getattr(self, name)
                raise ValueError(f"{name} has one number or {channels}, for {self.order}: {given}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """What an input has, [H, W, C]."""
        return (*self.size, 1 if self.order == "L" else 3)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the input for `image`, of any mode; see `to_rgb`."""
        height, width = self.size
        resized = to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
        if self.order == "L":
            ordered = np.asarray(resized.convert("L"), np.float32)[..., None]
        else:
            ordered = np.asarray(resized, np.float32)[..., :: -1 if self.order == "BGR" else 1]
        return (ordered / np.float32(self.scale) - _row(self.mean)) / _row(self.std)

    def invert(self, x: ArrayLike) -> np.ndarray:
        """Return the picture behind an input `[..., H, W, C]`: RGB float32, clipped to 0 to 1."""
        ordered = (np.asarray(x, np.float32) * _row(self.std) + _row(self.mean)) * self.scale
        pixels = np.repeat(ordered, 3, -1) if self.order == "L" else ordered
        pixels = pixels[..., ::-1] if self.order == "BGR" else pixels
        return np.clip(pixels / np.float32(255), 0, 1).astype(np.float32)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a PIL image of any mode into RGB, as a viewer would show it.

    It is turned upright by its EXIF tag, what is transparent is put on white, and 16 bits (PIL's
    modes I;16 and I) become 8 by division by 257.

    Raises:
        TypeError: `image` is no PIL image.

    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL image, got {type(image).__name__}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) / 257 + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _row(values: Colours) -> np.ndarray:
    return np.array(values, np.float32)


IMAGENET = Preprocess((224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Preprocess((227, 227), mean=(104.0, 117.0, 123.0), order="BGR", scale=1.0)
TENSORFLOW = Preprocess((224, 224), mean=(1.0, 1.0, 1.0), scale=127.5)
CIFAR = Preprocess((32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
