"""The networks with real weights on real pictures: the accuracy that others measured.

Top-1 and top-5 in per cent of every n-th picture. The figures of the first case and of CIFAR in
full are the data's own (68.25 / 90.5, 81.0, 83.2); MobileNet's were measured with this code, the
data's being for another set of pictures.
"""

import csv
import io
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxfmi.models import (
    CAFFE,
    CIFAR,
    TENSORFLOW,
    cifar_resnet20,
    cifar_resnet56,
    load,
    mobilenet_v1,
    mobilenet_v2,
    squeezenet1_0,
)


def predictions(model, inputs, size):
    forward = jax.jit(lambda model, x: model(x))
    parts = [forward(model, inputs[i : i + size]) for i in range(0, len(inputs), size)]
    return np.argsort(-np.concatenate(parts), axis=1, stable=True)[:, :5]


FOLDED = {"num_classes": 1001, "norm": False, "padding": "SAME"}
TENSORFLOW_192 = replace(TENSORFLOW, size=(192, 192))
BUILDS = {
    "squeezenet_v1.0": lambda: squeezenet1_0(padding=1),
    "mobilenet_v1_0.25_224": lambda: mobilenet_v1(width=0.25, **FOLDED),
    "mobilenet_v1_0.75_192": lambda: mobilenet_v1(width=0.75, **FOLDED),
    "mobilenet_v2_1.0_224": lambda: mobilenet_v2(**FOLDED),
    "cifar10_resnet20": cifar_resnet20,
    "cifar10_resnet56": cifar_resnet56,
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("file", "preprocess", "every", "top1", "top5"),
    [
        ("squeezenet_v1.0", CAFFE, 1, 68.25, 90.5),
        ("mobilenet_v1_0.25_224", TENSORFLOW, 1, 62.25, 86.25),
        ("mobilenet_v2_1.0_224", TENSORFLOW, 4, 72.0, 93.0),
        slow("mobilenet_v1_0.75_192", TENSORFLOW_192, 1, 74.0, 92.25),
        slow("mobilenet_v2_1.0_224", TENSORFLOW, 1, 76.75, 93.75),
    ],
)
def test_accuracy_on_imagenet(shared, file, preprocess, every, top1, top5):
    folder = shared / "data" / "imagenet_val"
    with (folder / "index.csv").open() as index:
        rows = list(csv.DictReader(index))[::every]
    model = load(nnx.eval_shape(BUILDS[file]), shared / "data" / "weights" / f"{file}.npz")
    images = np.stack([preprocess(Image.open(folder / row["file"])) for row in rows])
    background = 0 if file.startswith("squeezenet") else 1
    labels = np.array([int(row["class_index"]) + background for row in rows])
    hits = predictions(model, images, 50) == labels[:, None]
    assert 100 * hits[:, 0].mean() == pytest.approx(top1, abs=0.5)
    assert 100 * hits.any(axis=1).mean() == pytest.approx(top5, abs=0.5)


@pytest.mark.parametrize(
    ("file", "every", "top1"),
    [
        ("cifar10_resnet20", 1, 81.03),
        ("cifar10_resnet56", 5, 84.15),
        slow("cifar10_resnet56", 1, 83.2),
    ],
)
def test_accuracy_on_cifar(shared, file, every, top1):
    data = np.load(shared / "data" / "cifar10_jpeg_test.npz")
    blob, bounds = data["blob"], list(pairwise(data["offsets"]))[::every]
    pictures = [blob[start:stop].tobytes() for start, stop in bounds]
    images = np.stack([CIFAR(Image.open(io.BytesIO(picture))) for picture in pictures])
    model = load(nnx.eval_shape(BUILDS[file]), shared / "data" / "weights" / f"{file}.npz")
    hits = predictions(model, images, 500)[:, 0] == data["labels"][::every]
    assert 100 * hits.mean() == pytest.approx(top1, abs=0.1)
