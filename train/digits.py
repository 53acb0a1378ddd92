"""Digits on textures: made pictures whose boxes and strokes are known exactly.

The digits are scikit-learn's 1797 scans of 8×8 pixels, the textures scikit-image's photographs;
both come with their packages, and nothing is downloaded. No scan is in training and test pictures
both; textures are parts of the same photographs.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfmi.train.sources import Split

__all__ = ["Digits", "digits_on_textures", "draw_digits"]

TEXTURES = ("brick", "grass", "gravel", "astronaut", "coffee", "chelsea")
SIDE = 128  # of the textures
TRAINING_SCANS = 1200
STROKE = 0.3  # opacity from which on a pixel belongs to the digit
DISTRACTORS, FRAGMENT, FAINT = 3, 4, 0.35
CLASSES = {10: tuple(map(str, range(10))), 2: ("below 5", "5 or more")}


class Digits(NamedTuple):
    """Pictures, what they show, and where."""

    images: np.ndarray  #: uint8 [N, size, size, 3]
    labels: np.ndarray  #: int32 [N]
    boxes: np.ndarray  #: int32 [N, 4], x1, y1, x2, y2 in pixels, both ends included
    masks: np.ndarray  #: bool [N, size, size], of the digit's strokes


def digits_on_textures(
    train: int = 2000, test: int = 1000, *, size: int = 24, classes: int = 10, seed: int = 0
) -> Mapping[str, Split]:
    """The splits `train` and `test` of pictures uint8 [N, size, size, 3], with boxes.

    Args:
      train: number of pictures.
      test: number of pictures.
      size: side of the pictures, at least 16.
      classes: 10, the digits; or 2, whether the digit is 5 or more.
      seed: of everything that is drawn.

    Raises:
      ValueError: another number of classes, or pictures too small for a digit.
      ImportError: scikit-learn or scikit-image is absent.
    """
    counts = {"train": train, "test": test}
    drawn = {k: draw_digits(n, k, size=size, classes=classes, seed=seed) for k, n in counts.items()}
    return {k: Split(d.images, d.labels, d.boxes, CLASSES[classes], ()) for k, d in drawn.items()}


def draw_digits(
    count: int, split: str = "train", *, size: int = 24, classes: int = 10, seed: int = 0
) -> Digits:
    """Draw pictures with the masks of the strokes: a digit, three fragments of others, a texture.

    A bright digit of random colour is at a random place, 11 pixels high at size 24 and otherwise in
    proportion; its box is 9 wide, and cuts a corner off the widest digits. The texture is a random
    part of a random photograph, darkened to .3 to .7 of itself and mirrored half of the time.
    Fragments are 4×4 pixels of digits, faint and of any colour.

    Args:
      count: of pictures.
      split: "train" or "test".
      size: side of the pictures.
      classes: as in `digits_on_textures`.
      seed: likewise.

    Raises:
      ValueError: as `digits_on_textures`, or there is no such split.
      ImportError: likewise.
    """
    if classes not in CLASSES:
        raise ValueError(f"digits have {' or '.join(map(str, CLASSES))} classes, got {classes}")
    if split not in (splits := ("train", "test")):
        raise ValueError(f"the splits are {splits}, got {split!r}")
    if not 16 <= size <= SIDE:
        raise ValueError(f"the side of a picture is 16 to {SIDE}, got {size}")
    rng = np.random.default_rng((seed, splits.index(split)))
    scans, digits = _scans(11 * size // 24)
    order = np.random.default_rng((seed, 2)).permutation(len(scans))
    own = order[:TRAINING_SCANS] if split == "train" else order[TRAINING_SCANS:]
    chosen = rng.choice(own, count)
    drawn = [_draw(rng, scans[i], scans[own], size) for i in chosen]
    images, boxes, masks = (np.stack(parts) for parts in zip(*drawn, strict=True))
    labels = digits[chosen] if classes == 10 else digits[chosen] >= 5
    return Digits(images, labels.astype(np.int32), boxes.astype(np.int32), masks)


def _draw(rng: np.random.Generator, scan: np.ndarray, scans: np.ndarray, size: int):
    """One picture, its box and its mask."""
    x = _texture(rng, size)
    for _ in range(DISTRACTORS):
        top, left = rng.integers(0, scan.shape[0] - FRAGMENT + 1, 2)
        fragment = scans[rng.integers(len(scans))][top:, left:][:FRAGMENT, :FRAGMENT]
        x, _, _ = _blend(rng, x, FAINT * fragment, rng.uniform(0, 1, 3))
    x, (top, left), alpha = _blend(rng, x, scan, rng.uniform(0.6, 1, 3))
    margin = round(len(scan) / 11)  # the scans have empty columns on both sides
    right, bottom = left + len(scan) - 1 - margin, top + len(scan) - 1
    box = np.array([left + margin, top, right, bottom])
    return np.rint(255 * x).astype(np.uint8), box, alpha > STROKE


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    textures = _textures()
    top, left = rng.integers(0, SIDE - size + 1, 2)
    part = textures[rng.integers(len(textures))][top : top + size, left : left + size]
    return rng.uniform(0.3, 0.7) * (part[:, ::-1] if rng.random() < 0.5 else part)


def _blend(rng: np.random.Generator, x: np.ndarray, opacity: np.ndarray, colour: np.ndarray):
    """Lay a colour over a picture at a random place; also gives the place and the opacity there."""
    side = len(opacity)
    top, left = place = rng.integers(0, len(x) - side + 1, 2)
    alpha = np.zeros(x.shape[:2])
    alpha[top : top + side, left : left + side] = opacity
    return x + alpha[..., None] * (colour - x), place, alpha


@cache
def _scans(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The scans [1797, side, side] in 0..1, and which digits they are."""
    digits = _needed("sklearn.datasets", "scikit-learn").load_digits()
    images = np.asarray(digits.images, np.float32) / 16
    shape = (len(images), side, side)
    return np.clip(jax.image.resize(images, shape, "bilinear"), 0, 1), np.asarray(digits.target)


@cache
def _textures() -> np.ndarray:
    """The photographs [6, 128, 128, 3] in 0..1."""
    data = _needed("skimage.data", "scikit-image")
    photos = [np.atleast_3d(getattr(data, name)()) / np.float32(255) for name in TEXTURES]
    resized = [jax.image.resize(p, (SIDE, SIDE, p.shape[2]), "linear") for p in photos]
    return np.stack([np.broadcast_to(p, (SIDE, SIDE, 3)) for p in resized])


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'digits on textures need {package}: pip install "jaxfmi[train]"'
        ) from error
