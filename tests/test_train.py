"""The training loop on a handful of synthetic pictures: two classes, told apart by their colour."""

import io
import itertools
import json
import shlex
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxfmi.models.demo import DemoNet
from jaxfmi.train import classifier, loop
from jaxfmi.train.augment import augment
from jaxfmi.train.card import command, cover, inside
from jaxfmi.train.config import parse
from jaxfmi.train.data import load_split


def pack(path, n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, 16, 16, 3), np.uint8)
    images[np.arange(n), 4:12, 4:12, labels] = 220
    files = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    np.savez(
        path,
        blob=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=labels.astype(np.int16),
        boxes=np.tile([4, 4, 11, 11], (n, 1)).astype(np.int16),
        names=["red", "green"],
        wnids=["n0", "n1"],
    )
    return images


@pytest.fixture
def config(tmp_path):
    pack(tmp_path / "set_train.npz", 32, 0)
    pack(tmp_path / "set_val.npz", 8, 1)
    return classifier.Config(
        data=str(tmp_path / "set"),
        out=str(tmp_path / "run"),
        epochs=4,
        batch_size=8,
        learning_rate=0.001,
        layer="",
        ema=0.5,
        devices=1,
    )


class Net(nnx.Module):
    """Any classifier will do: this one has random numbers and running statistics of its own."""

    def __init__(self, seed=0):
        self.rngs = nnx.Rngs(seed)
        self.norm = nnx.BatchNorm(3, rngs=self.rngs)
        self.dropout = nnx.Dropout(0.1, rngs=self.rngs)
        self.layer = nnx.Linear(16 * 16 * 3, 2, rngs=self.rngs)

    def __call__(self, x):
        return self.layer(jnp.reshape(self.dropout(self.norm(x)), (len(x), -1)))


def log(config):
    with open(f"{config.out}/log.jsonl") as lines:
        return [json.loads(line) for line in lines]


def weights(model):
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def test_learns_and_leaves_a_card(config):
    demo = DemoNet(2, widths=(8,), strides=(2,), stem=4, rngs=nnx.Rngs(0))
    model = classifier.main(replace(config, learning_rate=0.05, layer="auto"), demo)
    lines = log(config)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["val_accuracy"] == 1
    with open(f"{config.out}/model.json") as file:
        card = json.load(file)
    assert card["classes"] == ["red", "green"]
    assert card["preprocess"]["size"] == [16, 16]
    assert card["figures"]["pointing_random"] == 0.25
    assert model.stem.norm.use_running_average


def test_same_seed_same_weights(config, tmp_path):
    first = classifier.main(replace(config, epochs=1), Net())
    again = classifier.main(replace(config, epochs=1, out=str(tmp_path / "again")), Net())
    other = classifier.main(replace(config, epochs=1, out=str(tmp_path / "o"), seed=1), Net())
    assert all((a == b).all() for a, b in zip(weights(first), weights(again), strict=True))
    assert any((a != b).any() for a, b in zip(weights(first), weights(other), strict=True))


def test_goes_on_from_the_checkpoint(config, tmp_path, monkeypatch):
    config = replace(config, save_every=3)
    whole = classifier.main(replace(config, out=str(tmp_path / "whole")), Net())
    batches = loop.batches

    def power_cut(*args):
        yield from itertools.islice(batches(*args), 8)
        raise RuntimeError("power cut")

    monkeypatch.setattr(loop, "batches", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        classifier.main(config, Net())
    monkeypatch.setattr(loop, "batches", batches)
    halves = classifier.main(config, Net(seed=5))
    assert [line["epoch"] for line in log(config)] == [0, 1, 2, 3]
    assert all((a == b).all() for a, b in zip(weights(whole), weights(halves), strict=True))


def test_starts_from_weights(config, tmp_path):
    first = classifier.main(replace(config, epochs=1), Net())
    config = replace(config, start=f"{config.out}/model.safetensors", out=str(tmp_path / "next"))
    second = classifier.main(replace(config, epochs=1, learning_rate=0.0), Net(1))
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (first, second)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_nan_stops_with_a_message(config):
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0.*learning rate"):
        classifier.main(replace(config, learning_rate=1e30), Net())


def test_missing_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere_train\.npz.*--data"):
        classifier.load_data(classifier.Config(str(tmp_path / "nowhere"), "out"))
    np.savez(tmp_path / "set_val.npz", labels=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks \['blob', 'offsets', 'names'\].*'labels'"):
        load_split(tmp_path / "set_val.npz")


def test_pictures_come_back_as_they_were_packed(tmp_path):
    images = pack(tmp_path / "set.npz", 6, 2)
    split = load_split(tmp_path / "set.npz")
    np.testing.assert_array_equal(split.images, images)
    assert split.names == ("red", "green")


def test_augment_without_changes_is_the_picture_or_its_mirror_image():
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    x = np.asarray(augment(jax.random.key(0), images, flip=True)) * 255
    for got, image in zip(x, images, strict=True):
        assert min(abs(got - image).max(), abs(got - image[:, ::-1]).max()) < 1


def test_augment_resizes_within_range_and_depends_on_the_key():
    images = np.full((4, 12, 12, 3), 200, np.uint8)
    changes = {"pad": 2, "flip": True, "min_scale": 0.3, "stretch": 1.5, "jitter": 0.4}
    changes |= {"grey": 0.1, "cast": 0.1, "erase": 0.5}
    a, b = (augment(jax.random.key(seed), images, 20, **changes) for seed in (0, 1))
    assert a.shape == (4, 20, 20, 3)
    assert a.min() >= 0
    assert a.max() <= 1
    assert (a != b).any()


def test_command_line_says_the_whole_config():
    config = classifier.Config("d", "o", sizes=(32, 48), label_smoothing=0.2, note="two words")
    assert parse(shlex.split(command(config))[3:]) == config


def test_boxes_include_both_ends():
    boxes = np.array([[1, 2, 3, 5], [1, 2, 3, 5]])
    assert inside(np.array([[5, 3], [5, 4]]), boxes) == 0.5
    assert cover(boxes, (6, 8)) == pytest.approx([0.25, 0.25])
