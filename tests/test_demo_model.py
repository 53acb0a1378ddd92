"""The embedded model: small enough, right about two free pictures, and with maps worth a look."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxfmi as jf
from jaxfmi import taps
from jaxfmi.models.demo import WEIGHTS, demo_model, lfi_cam_demo
from jaxfmi.train.attention import localise
from jaxfmi.train.card import COVER, cover, pointing
from jaxfmi.train.data import load_split, normalise


@pytest.fixture(scope="module")
def demo():
    return demo_model()


@pytest.fixture(scope="module")
def val(shared):
    return load_split(shared / "data" / "tiny_imagenet20_val.npz")


@pytest.fixture(scope="module")
def inputs(demo, val):
    p = demo.preprocess
    return normalise(val.images / np.float32(p.scale), p.mean, p.std)


def test_takes_two_megabytes_at_most():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 2_000_000


def test_card_travels_with_the_weights(demo):
    card = json.loads((WEIGHTS / "demo.json").read_text())
    assert len(demo.classes) == len(card["wnids"]) == 20
    assert demo.preprocess.size == (64, 64)
    assert card["note"]
    assert card["command"].startswith("python -m jaxfmi.train.classifier")


def test_tags(demo):
    found = taps.tags(demo.model, jnp.zeros((1, 64, 64, 3)))
    blocks = [f"block{i}" for i in range(1, 5)]
    assert [*found] == ["stem", *blocks, "importance", "attention", "attended"]


@pytest.mark.parametrize(("picture", "name"), [("chelsea", "tabby"), ("coffee", "espresso")])
def test_knows_the_pictures_of_scikit_image(demo, picture, name):
    data = pytest.importorskip("skimage.data", reason="needs the extra `demo`: scikit-image")
    x = demo.preprocess(Image.fromarray(getattr(data, picture)()))
    logits = demo.model(jnp.asarray(x)[None])[0]
    assert demo.classes[int(logits.argmax())].split(",")[0] == name


def test_accuracy(demo, val, inputs):
    logits = jax.lax.map(lambda x: demo.model(x[None])[0], inputs, batch_size=100)
    assert (logits.argmax(-1) == val.labels).mean() >= 0.70


def test_peaks_lie_on_the_objects(demo, val, inputs):
    figures = pointing(demo.model, inputs, val.labels, val.boxes)
    assert figures["pointing"] >= 0.60
    assert figures["pointing_random"] < 0.40


def test_the_map_it_makes_itself_lies_on_the_objects(demo, val, inputs):
    small = cover(val.boxes, inputs.shape[1:3]) < COVER
    own = jf.lfi_cam(jf.class_score(demo.model), size=None)
    maps = jax.lax.map(lambda x: own(x, 0), inputs[small], batch_size=100)
    figures = localise(np.asarray(maps), val.boxes[small], inputs.shape[1:3])
    assert figures["attention_pointing"] >= 0.70


def test_it_computes_in_float32_on_rgb():
    with pytest.raises(ValueError, match="float32, on RGB"):
        lfi_cam_demo(dtype=jnp.bfloat16)
