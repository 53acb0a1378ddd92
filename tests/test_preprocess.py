"""Pictures of every kind become the published numbers, and can be shown again."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxfmi.models import CAFFE, CIFAR, IMAGENET, TENSORFLOW, Preprocess

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def modes():
    """One picture, grey and in colour, in every mode that PIL opens files in."""
    rgb = Image.fromarray(RAMP)
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    yield from ((mode, rgb.convert(mode), rgb) for mode in ("RGB", "RGBA", "CMYK", "YCbCr"))
    yield "P", rgb.quantize(16), rgb
    yield "L", grey, grey
    yield "LA", grey.convert("LA"), grey
    yield "I;16", deep, grey
    yield "I", deep.convert("I"), grey
    yield "1", Image.new("1", (4, 4), 1), Image.new("L", (4, 4), 255)


@pytest.mark.parametrize(
    ("mode", "image", "expected"), [pytest.param(*m, id=m[0]) for m in modes()]
)
def test_pictures_of_every_mode(mode, image, expected):
    assert image.mode == mode
    plain = Preprocess((4, 4), mean=(0.0, 0.0, 0.0), scale=1.0)
    given = plain(image)
    assert given.shape == (4, 4, 3)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, np.asarray(expected.convert("RGB")), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(mode):
    clear = Image.new("RGBA" if mode == "P" else mode, (4, 4), 0)
    clear = clear.quantize(4) if mode == "P" else clear
    np.testing.assert_allclose(TENSORFLOW(clear), 1.0, atol=1e-6)


def test_turned_pictures_are_put_upright():
    image, exif = Image.new("RGB", (4, 2)), Image.Exif()
    image.putpixel((0, 0), (255, 255, 255))
    exif[0x0112] = 6  # the camera was turned: the first row is the right-hand side
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    given = Preprocess((4, 2), mean=(0.0, 0.0, 0.0))(Image.open(file))
    np.testing.assert_array_equal(np.argwhere(given[..., 0] == 1), [[0, 1]])


@pytest.mark.parametrize("preprocess", [IMAGENET, CAFFE, TENSORFLOW, CIFAR])
def test_presets_can_be_inverted(preprocess):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*preprocess.size, 3), "uint8")
    )
    x = preprocess(image)
    assert x.shape == (*preprocess.size, 3)
    np.testing.assert_allclose(preprocess.invert(x), np.asarray(image) / 255, atol=1e-5)
    np.testing.assert_allclose(preprocess.invert(jnp.asarray(x)[None] * 100).max(), 1)


def test_presets_are_the_published_numbers():
    red = Image.new("RGB", (9, 5), (255, 0, 0))
    np.testing.assert_allclose(CAFFE(red)[3, 3], [-104, -117, 255 - 123])
    np.testing.assert_allclose(TENSORFLOW(red)[3, 3], [1, -1, -1])
    np.testing.assert_allclose(IMAGENET(red)[3, 3], [2.2489, -2.0357, -1.8044], atol=1e-4)


def test_one_channel():
    """Grey, and black ink on white paper as 1 on 0."""
    rows = np.tile(np.array([0, 51, 255], np.uint8), (2, 1))
    picture = Image.fromarray(rows)
    grey = Preprocess((2, 3), mean=(0.2,), std=(0.5,), order="L")
    x = grey(picture)
    assert x.shape == grey.shape == (2, 3, 1)
    np.testing.assert_allclose(x[0, :, 0], [-0.4, 0, 1.6], atol=1e-6)
    np.testing.assert_allclose(grey.invert(x)[0], np.repeat([[0], [0.2], [1]], 3, 1), atol=1e-6)
    ink = Preprocess((2, 3), mean=(-1.0,), order="L", scale=-255.0)
    np.testing.assert_allclose(ink(picture)[0, :, 0], [1, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(ink.invert(ink(picture)), grey.invert(x), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.0,), "order": "GRB"}, "order of channels is RGB, BGR or L, got 'GRB'"),
        ({"mean": (0.0,) * 3, "order": "L"}, r"mean has one number or 1, for L: \(0.0, 0.0, 0.0\)"),
        ({"mean": (0.0,), "std": (1.0, 2.0)}, r"std has one number or 3, for RGB: \(1.0, 2.0\)"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess((2, 3), **options)


def test_only_pictures_are_preprocessed():
    with pytest.raises(TypeError, match="expected a PIL image, got ndarray"):
        IMAGENET(RAMP)
