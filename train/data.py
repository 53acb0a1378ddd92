"""Pictures for training: packed files in memory, and augmentation inside the compiled step."""

import io
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

__all__ = ["Split", "augment", "load_data", "load_split", "normalise"]


class Split(NamedTuple):
    """Pictures uint8 [N, H, W, 3] of one size, labels [N], boxes [N, 4] or None, class names."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None
    names: tuple[str, ...]
    wnids: tuple[str, ...]


def load_split(path: str | Path) -> Split:
    """Read a packed `.npz`: `blob` holds encoded pictures, `offsets` [N + 1] their boundaries.

    `labels` [N] and `names` come with them; `wnids` and `boxes` [N, 4] (x1, y1, x2, y2 in pixels,
    both ends included) may. Raises FileNotFoundError and, where an entry is missing, ValueError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no packed pictures at {path}: --data takes the part of the path before _train.npz"
        )
    with np.load(path) as packed:
        entries = dict(packed)
    missing = [name for name in ("blob", "offsets", "labels", "names") if name not in entries]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it has {sorted(entries)}")
    blob, cuts = entries["blob"].tobytes(), entries["offsets"]
    files = (blob[a:b] for a, b in pairwise(cuts))
    images = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    names, wnids = (tuple(map(str, entries.get(k, ()))) for k in ("names", "wnids"))
    return Split(images, entries["labels"].astype(np.int32), entries.get("boxes"), names, wnids)


def load_data(prefix: str | Path) -> tuple[Split, Split]:
    """Read `<prefix>_train.npz` and `<prefix>_val.npz`."""
    return load_split(f"{prefix}_train.npz"), load_split(f"{prefix}_val.npz")


def normalise(images, mean, std):
    """Subtract `mean` [C] from pictures [N, H, W, C] of 0..1 and divide by `std` [C]."""
    mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images - mean) / std


@partial(jax.jit, static_argnames="size")
def augment(key, images, size, min_scale, stretch, jitter, grey, cast, erase):
    """Crop, flip, recolour and erase: uint8 [N, H, W, 3] -> float32 [N, size, size, 3] in 0..1.

    The crop covers `min_scale`..1 of the picture, at 1/`stretch`..`stretch` times its aspect ratio
    (what exceeds the picture is cut). Saturation, contrast and brightness change by factors of
    1 -/+ `jitter`, with probability `grey` there is no colour, then each channel changes by one of
    1 -/+ `cast`, like the white balance. With probability `erase` a rectangle of a quarter to half
    the sides is blank.
    """

    def one(key, image):
        crop, flip, colour, cut = jax.random.split(key, 4)
        x = _crop(crop, image.astype(jnp.float32) / 255, size, min_scale, stretch)
        x = jnp.where(jax.random.bernoulli(flip), x[:, ::-1], x)
        return _erase(cut, _recolour(colour, x, jitter, grey, cast), erase)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def _crop(key, x, size, min_scale, stretch):
    """A random part of the picture, resized with antialiasing to [size, size, 3]."""
    k1, k2, k3 = jax.random.split(key, 3)
    area = jax.random.uniform(k1, minval=min_scale)
    aspect = stretch ** jax.random.uniform(k2, minval=-1)
    part = jnp.minimum(jnp.sqrt(area * jnp.array([aspect, 1 / aspect])), 1)
    sides = jnp.array(x.shape[:2], jnp.float32)
    start = jax.random.uniform(k3, (2,)) * (1 - part) * sides
    scale = size / (part * sides)
    shape = (size, size, x.shape[2])
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
