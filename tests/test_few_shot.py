"""Prototypical networks on synthetic pictures whose classes are positions of a bright square."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfmi.train import few_shot
from jaxfmi.train.options import command, parse
from jaxfmi.train.pictures import Pictures


def pictures(classes, each=6, seed=0):
    """Every class has a bright square on a noisy ground at a place of its own."""
    labels = np.repeat(np.arange(len(classes)), each)
    images = np.random.default_rng(seed).integers(0, 40, (len(labels), 8, 8, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(classes[label], 3)
        image[row * 2 : row * 2 + 3, column * 2 : column * 2 + 3] = 220
    return Pictures(images, labels, tuple(map(str, classes)))


DATA = pictures([0, 2, 4, 6, 7]), pictures([1, 3, 5, 8], seed=1)


@pytest.fixture
def config(tmp_path):
    return few_shot.Config(
        data="",
        out=str(tmp_path / "run"),
        way=4,
        shot=2,
        query=3,
        test_way=3,
        test_query=4,
        test_episodes=5,
        episodes=6,
        every=2,
        learning_rate=0.01,
        widths=(4, 6),
        pools=(1,),
    )


class Flat(nnx.Module):
    """Any network that embeds will do: this one keeps the pixels' places, and running means."""

    def __init__(self, seed=0):
        self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(seed))
        self.layer = nnx.Linear(64, 5, rngs=nnx.Rngs(seed))

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
    support, query = rng.normal(size=(3, 2, 4, 5, 1)), rng.normal(size=(3, 4, 4, 5, 1))
    loss, logits = few_shot.loss_fn(lambda x: x.reshape(len(x), -1), support, query, 0.5)
    total = 0
    for n in range(3):
        for q in range(4):
            row = [-0.5 * ((query[n, q] - support[m].mean(0)) ** 2).sum() for m in range(3)]
            np.testing.assert_allclose(logits[n, q], row, rtol=1e-4)
            total += np.log(np.exp(row).sum()) - row[n]
    np.testing.assert_allclose(loss, total / 12, rtol=1e-4)


def test_learns_and_leaves_a_card(config):
    config = replace(config, episodes=60, every=30, learning_rate=0.03, scale=1.0)
    model = few_shot.main(config, Flat(), DATA)
    first, last = log(config)
    assert (first["episodes"], last["episodes"]) == (30, 60)
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > 0.9
    with open(f"{config.out}/model.json") as file:
        card = json.load(file)
    assert card["figures"]["test_accuracy"] == last["test_accuracy"] > 0.5
    assert card["command"].startswith("python -m jaxfmi.train.few_shot --data '' --out ")
    assert model.norm.use_running_average


def test_default_network_takes_the_pictures_channels(config):
    model = few_shot.main(replace(config, episodes=2, mirror=True), data=DATA)
    assert model(jnp.zeros((2, 8, 8, 1))).shape == (2, 6)


def test_same_seed_same_weights(config, tmp_path):
    first = few_shot.main(config, Flat(), DATA)
    Path(config.out).rename(tmp_path / "first")  # another folder would compile once more
    again = few_shot.main(config, Flat(), DATA)
    other = few_shot.main(replace(config, out=str(tmp_path / "o"), seed=1), Flat(), DATA)
    assert same(first, again)
    assert not same(first, other)


def test_goes_on_from_the_checkpoint(config, tmp_path, monkeypatch):
    whole = few_shot.main(config, Flat(), DATA)
    Path(config.out).rename(tmp_path / "whole")
    once = few_shot._round

    def power_cut(number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return once(number, *rest)

    monkeypatch.setattr(few_shot, "_round", power_cut)
    with pytest.raises(KeyboardInterrupt):
        few_shot.main(config, Flat(), DATA)
    monkeypatch.setattr(few_shot, "_round", once)
    halves = few_shot.main(config, Flat(seed=5), DATA)
    assert [line["episodes"] for line in log(config)] == [2, 4, 6]
    assert same(whole, halves)


def test_episodes_have_distinct_classes_and_pictures():
    labels = np.repeat([3, 5, 9, 11], [6, 7, 6, 8])
    drawn = few_shot.draw(np.random.default_rng(0), labels, 3, 6)
    assert drawn.shape == (3, 6)
    assert len(np.unique(drawn)) == 18
    assert all(len(set(row)) == 1 for row in labels[drawn].tolist())
    assert len(np.unique(labels[drawn][:, 0])) == 3


def test_nan_stops_with_a_message(config):
    with pytest.raises(FloatingPointError, match=r"loss is nan in episodes [024] to .*learning"):
        few_shot.main(replace(config, learning_rate=1e30), Flat(), DATA)


def test_bad_input_is_named(config, tmp_path):
    with pytest.raises(ValueError, match=r"needs 6 classes of 5 pictures to train on: got 5 with"):
        few_shot.main(replace(config, way=6), Flat(), DATA)
    with pytest.raises(ValueError, match=r"needs 3 classes of 9 pictures to test on: got 4 with"):
        few_shot.main(replace(config, test_query=8), Flat(), DATA)
    with pytest.raises(ValueError, match=r"test_episodes is at least 1, got 0"):
        few_shot.main(replace(config, test_episodes=0), Flat(), DATA)
    with pytest.raises(ValueError, match=r"either `novel`.*or `held_out`"):
        few_shot.load_data(config)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        few_shot.load_data(replace(config, data=str(tmp_path / "nowhere.npz"), held_out=(1,)))


def test_held_out_classes_are_not_trained_on(config, monkeypatch):
    monkeypatch.setattr(few_shot, "read", lambda *_: DATA[0])
    train, novel = few_shot.load_data(replace(config, held_out=(1, 3), rotations=True))
    assert novel.names == ("2", "6")
    assert len(train.names) == 4 * 3
    assert len(train.images) == 4 * 18


def test_command_line_says_the_whole_config():
    config = few_shot.Config("d", "two words", held_out=(1, 3), rotations=True, mean=(0.5, 0.2))
    words = shlex.split(command(config, few_shot.MODULE))
    assert words[:3] == ["python", "-m", "jaxfmi.train.few_shot"]
    assert parse(few_shot.Config, few_shot.MODULE, words=words[3:]) == config
