"""SimCLR on synthetic pictures: NT-Xent, a run that stops and goes on, neighbours."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfmi.train import contrastive
from jaxfmi.train.options import command, parse
from jaxfmi.train.pictures import Pictures


def pictures(n, seed):
    """Two kinds of texture, upright and lying stripes, in random colours."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    stripes = (np.indices((8, 8)) // 2 % 2)[labels][..., None]
    colours = rng.integers(60, 255, (n, 1, 1, 3))
    return Pictures((stripes * colours).astype(np.uint8), labels, ("lying", "upright"))


DATA = pictures(24, 0), pictures(8, 1)


@pytest.fixture
def config(tmp_path):
    return contrastive.Config(
        data="d",
        out=str(tmp_path / "run"),
        val="v",
        epochs=4,
        batch_size=8,
        learning_rate=0.01,
        widths=(4, 6),
        pools=(1,),
        projection=(5, 4),
    )


class Flat(nnx.Module):
    """Any network that embeds will do: this one keeps the pixels' places, and running means."""

    def __init__(self, seed=0):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(seed))
        self.layer = nnx.Linear(8 * 8 * 3, 5, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.layer(self.norm(x).reshape(len(x), -1))


def weights(model):
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def same(first, second):
    return all((a == b).all() for a, b in zip(weights(first), weights(second), strict=True))


def log(config):
    with open(f"{config.out}/log.jsonl") as lines:
        return [json.loads(line) for line in lines]


def test_loss_is_the_formula():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 2, 2, 1)), rng.normal(size=(3, 2, 2, 1))
    loss, _ = contrastive.loss_fn(lambda x: x.reshape(len(x), -1), first, second, 0.3)
    z = np.concatenate([first, second]).reshape(6, -1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0
    for i in range(6):
        row = np.exp([z[i] @ z[j] / 0.3 for j in range(6) if j != i])
        total -= np.log(np.exp(z[i] @ z[(i + 3) % 6] / 0.3) / row.sum())
    np.testing.assert_allclose(loss, total / 6, rtol=1e-5)


def test_loss_of_a_projection_of_zero_has_a_gradient():
    x = jnp.ones((2, 1, 1, 3))
    grads = jax.grad(lambda w: contrastive.loss_fn(lambda x: x[:, 0, 0] * w, x, x)[0])(0.0)
    assert grads == 0


def test_learns_and_leaves_a_card(config):
    config = replace(config, epochs=8, jitter=0.1, grey=0.0, cast=0.0, min_scale=0.8)
    model = contrastive.main(config, data=DATA)
    lines = log(config)
    assert [line["epoch"] for line in lines] == list(range(8))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} < lines[0].keys()
    with open(f"{config.out}/model.json") as file:
        card = json.load(file)
    assert 0 <= card["figures"]["neighbours"] <= 1
    assert card["command"].startswith("python -m jaxfmi.train.contrastive --data d --out ")
    assert model(jnp.zeros((1, 8, 8, 3))).shape == (1, 4)
    assert model.backbone(jnp.zeros((1, 8, 8, 3))).shape == (1, 6)


def test_goes_on_from_the_checkpoint(config, tmp_path, monkeypatch):
    whole = contrastive.main(config, Flat(), DATA)
    Path(config.out).rename(tmp_path / "whole")  # another folder would compile once more
    once = contrastive._epoch

    def power_cut(number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return once(number, *rest)

    monkeypatch.setattr(contrastive, "_epoch", power_cut)
    with pytest.raises(KeyboardInterrupt):
        contrastive.main(config, Flat(), DATA)
    monkeypatch.setattr(contrastive, "_epoch", once)
    halves = contrastive.main(config, Flat(seed=5), DATA)
    assert [line["epoch"] for line in log(config)] == [0, 1, 2, 3]
    assert same(whole, halves)
    other = contrastive.main(replace(config, out=str(tmp_path / "o"), seed=1), Flat(), DATA)
    assert not same(whole, other)


def test_views_differ_and_belong_to_the_key(config):
    images = DATA[0].images[:4]
    first, second = contrastive._views(jax.random.key(0), images, config)
    again, _ = contrastive._views(jax.random.key(0), images, config)
    assert first.shape == second.shape == images.shape
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


def test_neighbours_vote_by_the_angle_from_the_mean():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    gallery = rng.normal(size=(20, 3)) * 0.1 + np.where(labels, 1, -1)[:, None] + 50
    queries = jnp.array([[51.0, 51, 51], [49, 49, 49], [53, 53, 53]])
    assert contrastive.neighbours(gallery, labels, queries, 5).tolist() == [1, 0, 1]


def test_pictures_without_labels_have_no_neighbours(config):
    bare = Pictures(DATA[0].images, np.array([], int)), Pictures(DATA[1].images, np.array([], int))
    contrastive.main(replace(config, epochs=1), Flat(), bare)
    with open(f"{config.out}/model.json") as file:
        assert "neighbours" not in json.load(file)["figures"]


def test_bad_input_is_named(config):
    with pytest.raises(ValueError, match=r"a batch has 100 pictures, there are 24 pictures"):
        contrastive.main(replace(config, batch_size=100), Flat(), DATA)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0.*learning rate"):
        contrastive.main(replace(config, learning_rate=1e30), Flat(), DATA)
    none = Pictures(DATA[1].images[:0], DATA[1].labels[:0])
    with pytest.raises(ValueError, match="no picture to test on"):
        contrastive.main(config, Flat(), (DATA[0], none))
    with pytest.raises(ValueError, match="packed"):
        contrastive.load_data(config)


def test_some_are_a_shuffled_part(config, monkeypatch):
    monkeypatch.setattr(contrastive, "read", lambda path: DATA["dv".index(path)])
    train, val = contrastive.load_data(replace(config, pictures=10))
    assert len(train.images) == len(train.labels) == 10
    assert len(val.images) == 8
    assert train.labels.tolist() != DATA[0].labels[:10].tolist()


def test_command_line_says_the_whole_config():
    config = contrastive.Config("d", "o", "v", epochs=3, projection=(32, 16))
    words = command(config, contrastive.MODULE).split()
    assert parse(contrastive.Config, contrastive.MODULE, words=words[3:]) == config
