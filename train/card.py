"""What travels with trained weights: class names, preprocessing, figures, the command."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfmi.cam import grad_cam
from jaxfmi.chunks import chunk_map
from jaxfmi.explainer import one_layer
from jaxfmi.models.preprocess import Preprocess
from jaxfmi.taps import capture
from jaxfmi.train.augment import normalise
from jaxfmi.train.data import Records, Split, boxes_of, first
from jaxfmi.train.options import command

__all__ = ["card", "cover", "inside", "layer_of", "pointing"]

COVER = 0.7


def card(
    model: Any, val: Split | Records, config: Any, figures: dict[str, float], module: str
) -> dict[str, Any]:
    """Collect, ready for JSON, all that a user of the weights needs to know.

    `config` is the dataclass of the training script `module`. Where the split has boxes and there
    is a layer to explain, what `pointing` measures joins the figures.
    """
    picture = first(val, config)
    height, width = picture.shape[1:3]
    boxes, layer = boxes_of(val, config.size), layer_of(model, picture, config.layer)
    if isinstance(val, Split) and boxes is not None and layer:
        x = normalise(val.images / np.float32(255), config.mean, config.std)
        figures = figures | pointing(model, x, val.labels, boxes, layer)
    return {
        "note": config.note,
        "classes": val.names,
        "wnids": val.wnids,
        "preprocess": asdict(Preprocess((height, width), config.mean, config.std)),
        "figures": figures,
        "command": command(config, module),
        "config": asdict(config),
    }


def layer_of(model: Any, picture: np.ndarray, layer: str) -> str:
    """The tag to explain: that of "auto" in a picture [1, H, W, C], "" for a network without tags.

    Raises:
      ValueError: the network has no such tag.
    """

    def score(x):
        return model(x[None])[0, 0]

    x = jnp.asarray(picture[0], float)
    try:
        name = one_layer(score, layer, x) if layer else ""
    except ValueError:
        if layer != "auto":
            raise
        name = ""
    if name:
        jax.eval_shape(capture(score, name), x)  # a tag that is not there says so
    return name


def pointing(model: Any, images, labels, boxes, layer: str = "auto") -> dict[str, float]:
    """How often Grad-CAM's peak is in the box, where the box covers less than 70 % of the picture.

    Args:
      model: in eval mode, pictures [N, H, W, C] to logits [N, K].
      images: [N, H, W, C] as the model takes them.
      labels: [N]. `pointing` explains these true classes, `pointing_predicted` those the model
        predicts; `centre` and `random` are what the middle of the picture and a uniformly random
        pixel would get.
      boxes: [N, 4] x1, y1, x2, y2 in pixels, both ends included.
      layer: tag of the maps.

    Returns:
      Nothing where no box is that small.

    """

    def peak(x, label):
        heatmap = grad_cam(lambda v, k: model(v[None])[0, k], layer)(x, label)
        return jnp.array(jnp.unravel_index(heatmap.argmax(), heatmap.shape))

    small = cover(boxes, images.shape[1:3]) < COVER
    if not small.any():
        return {}
    images, labels, boxes = images[small], labels[small], boxes[small]
    predicted = np.asarray(jax.lax.map(lambda x: model(x[None])[0].argmax(), images, batch_size=50))
    peaks = jax.jit(lambda x, k: chunk_map(lambda a: peak(*a), (x, k), 50))
    centre = np.full((len(boxes), 2), np.array(images.shape[1:3]) // 2)
    return {
        "pointing": inside(np.asarray(peaks(images, labels)), boxes),
        "pointing_predicted": inside(np.asarray(peaks(images, predicted)), boxes),
        "pointing_centre": inside(centre, boxes),
        "pointing_random": float(cover(boxes, images.shape[1:3]).mean()),
        "pointing_images": len(boxes),
    }


def inside(points: np.ndarray, boxes: np.ndarray) -> float:
    """Share of points [N, 2] (row, column) within boxes [N, 4] (x1, y1, x2, y2)."""
    xy = points[:, ::-1]
    return float(((xy >= boxes[:, :2]) & (xy <= boxes[:, 2:])).all(1).mean())


def cover(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share [N] of the picture that each box covers."""
    return np.prod(boxes[:, 2:] - boxes[:, :2] + 1.0, axis=1) / np.prod(size)
