"""Random changes of training pictures: inside the compiled step, and where pictures are read."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from PIL import Image

__all__ = ["augment", "centre_crop", "normalise", "random_crop"]

Box = tuple[float, float, float, float]


def normalise(images: ArrayLike, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Subtract `mean` [C] from pictures [N, H, W, C] of 0..1 and divide by `std` [C]."""
    images = jnp.asarray(images)
    low, scale = (jnp.array(v, images.dtype).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images - low) / scale


def augment(
    key: jax.Array,
    images: ArrayLike,
    size: int = 0,
    *,
    pad: int = 0,
    flip: bool = False,
    min_scale: float = 1.0,
    stretch: float = 1.0,
    jitter: float = 0.0,
    grey: float = 0.0,
    cast: float = 0.0,
    erase: float = 0.0,
) -> jax.Array:
    """Pad and crop, crop and resize, flip, recolour, erase: uint8 [N, H, W, 3] to floats in 0..1.

    What is not asked for is not computed. `pad` zeros are put around the picture and a random part
    of its own size is cut out. A crop covers `min_scale`..1 of the picture, at 1/`stretch`..
    `stretch` times its aspect ratio (what exceeds the picture is cut), and is resized to `size`, or
    the picture's own; the picture's own size is 0. Half of the pictures are mirrored. Saturation,
    contrast and brightness change by factors of 1 -/+ `jitter`, with probability `grey` there is
    no colour, then each channel changes by one of 1 -/+ `cast`, like the white balance. With
    probability `erase` a rectangle of a quarter to half the sides is blank.

    Returns:
      [N, H, W, 3], or [N, size, size, 3].
    """
    images = jnp.asarray(images)
    shape = (size, size) if size else images.shape[1:3]
    resized = min_scale < 1 or stretch > 1 or shape != images.shape[1:3]

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        shift, crop, mirror, colour, cut = jax.random.split(key, 5)
        x = _shift(shift, image, pad) if pad else image
        x = x.astype(float) / 255
        x = _crop(crop, x, shape, min_scale, stretch) if resized else x
        x = jnp.where(jax.random.bernoulli(mirror), x[:, ::-1], x) if flip else x
        x = _recolour(colour, x, jitter, grey, cast) if jitter or grey or cast else x
        return _erase(cut, x, erase) if erase else x

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def random_crop(
    rng: np.random.Generator, image: np.ndarray, size: int, min_scale: float, stretch: float
) -> np.ndarray:
    """A random part of a picture [H, W, 3] of any size, resized to [size, size, 3].

    Drawn as PyTorch's programs do: up to ten times an area of `min_scale`..1 and an aspect ratio
    of 1/`stretch`..`stretch`, until both sides fit; else the middle, at the nearest ratio allowed.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(min_scale, 1)
        aspect = math.exp(rng.uniform(-math.log(stretch), math.log(stretch)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return _resize(image, (left, top, left + w, top + h), (size, size))
    w, h = min(width, round(height * stretch)), min(height, round(width * stretch))
    left, top = (width - w) // 2, (height - h) // 2
    return _resize(image, (left, top, left + w, top + h), (size, size))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The middle [size, size, 3] of a picture whose shorter side is made 8/7 of `size`.

    For 224 this is the usual evaluation: resize to 256, cut 224.
    """
    height, width = image.shape[:2]
    part = min(height, width) * size / round(size * 8 / 7)
    left, top = (width - part) / 2, (height - part) / 2
    return _resize(image, (left, top, left + part, top + part), (size, size))


def _resize(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def _shift(key, x, pad):
    """A part of the picture's own size out of the picture with `pad` zeros around it."""
    around = jnp.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    start = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(around, (start[0], start[1], 0), x.shape)


def _crop(key, x, shape, min_scale, stretch):
    """A random part of the picture, resized with antialiasing to [*shape, 3]."""
    k1, k2, k3 = jax.random.split(key, 3)
    area = jax.random.uniform(k1, minval=min_scale)
    aspect = stretch ** jax.random.uniform(k2, minval=-1)
    part = jnp.minimum(jnp.sqrt(area * jnp.array([aspect, 1 / aspect])), 1)
    sides = jnp.array(x.shape[:2], x.dtype)
    start = jax.random.uniform(k3, (2,)) * (1 - part) * sides
    scale = jnp.array(shape, x.dtype) / (part * sides)
    shape = (*shape, x.shape[2])
    return jax.image.scale_and_translate(x, shape, (0, 1), scale, -start * scale, "linear")


def _recolour(key, x, jitter, grey, cast):
    """Saturation, contrast, brightness times 1 -/+ `jitter`, then channels times 1 -/+ `cast`."""
    k1, k2, k3 = jax.random.split(key, 3)
    factors = jax.random.uniform(k1, (3,), minval=1 - jitter, maxval=1 + jitter)
    saturation, contrast, brightness = factors
    saturation *= jax.random.bernoulli(k2, 1 - grey)
    mean = x.mean(-1, keepdims=True)
    x = mean + saturation * (x - mean)
    x = x.mean() + contrast * (x - x.mean())
    gains = jax.random.uniform(k3, (1, 1, x.shape[-1]), minval=1 - cast, maxval=1 + cast)
    return jnp.clip(brightness * gains * x, 0, 1)


def _erase(key, x, probability):
    """One rectangle of a quarter to half the sides made grey, or the picture unchanged."""
    k1, k2, k3 = jax.random.split(key, 3)
    side = jax.random.uniform(k1, (2,), minval=0.25, maxval=0.5)
    start = jax.random.uniform(k2, (2,)) * (1 - side)
    centres = [(jnp.arange(n) + 0.5) / n for n in x.shape[:2]]
    rows, columns = ((p >= a) & (p < a + s) for p, a, s in zip(centres, start, side, strict=True))
    hole = rows[:, None, None] & columns[None, :, None] & jax.random.bernoulli(k3, probability)
    return jnp.where(hole, 0.5, x)
