"""Heatmaps of a real network on real pictures: their peaks lie on the objects."""

import csv

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxfmi
from jaxfmi.models import CAFFE, load, squeezenet1_0


@pytest.fixture(scope="module")
def pictures(shared):
    """Inputs [400, 227, 227, 3], labels [400], and the boxes of each (fractions, x1 y1 x2 y2)."""
    folder = shared / "data" / "imagenet_val"
    with (folder / "index.csv").open() as index:
        rows = list(csv.DictReader(index))
    inputs = np.stack([CAFFE(Image.open(folder / row["file"])) for row in rows])
    boxes = [[[float(v) for v in b.split(":")] for b in row["boxes"].split()] for row in rows]
    return inputs, np.array([int(row["class_index"]) for row in rows]), boxes


def peaks(heatmaps):
    """The places (x, y) of the largest values, as fractions of width and height."""
    n, height, width = heatmaps.shape
    y, x = np.unravel_index(heatmaps.reshape(n, -1).argmax(1), (height, width))
    return np.stack([(x + 0.5) / width, (y + 0.5) / height], 1)


def share_in_a_box(points, boxes):
    def inside(point, box):
        return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]

    return np.mean([any(inside(p, b) for b in bs) for p, bs in zip(points, boxes, strict=True)])


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_cam_of_squeezenet_peaks_in_the_boxes(shared, pictures, count):
    """Of 1300 such pictures 91.2 % were measured elsewhere; a random point is in a box of 50 %."""
    inputs, labels, boxes = (part[:count] for part in pictures)
    weights = shared / "data" / "weights" / "squeezenet_v1.0.npz"
    model = load(nnx.eval_shape(lambda: squeezenet1_0(padding=1)), weights)
    explain = jaxfmi.batched(lambda score: jaxfmi.cam(score, "conv_final"), model, batch_size=50)
    assert share_in_a_box(peaks(explain(inputs, labels)), boxes) >= 0.88
    random = np.random.default_rng(0).random((len(labels), 2))
    assert share_in_a_box(random, boxes) < 0.60
