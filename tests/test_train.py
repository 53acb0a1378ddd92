"""The training script on a handful of pictures: two classes, told apart by their colour."""

import io
import itertools
import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from training_run import Net, config, data, pictures, weights

from jaxfmi.models.demo import DemoNet
from jaxfmi.train import attention, classifier, loop, networks
from jaxfmi.train.augment import augment
from jaxfmi.train.card import cover, inside, pointing
from jaxfmi.train.data import load_split
from jaxfmi.train.journal import journal, read_log


def pack(path, split, **changes):
    files = []
    for image in split.images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    entries = {
        "blob": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": split.labels.astype(np.int16),
        "boxes": split.boxes.astype(np.int16),
        "names": ["red", "green"],
        "wnids": ["n0", "n1"],
    }
    np.savez(path, **entries | changes)


def same(first, second):
    return all((a == b).all() for a, b in zip(weights(first), weights(second), strict=True))


def short(out, **changes):
    return config(out, **{"epochs": 4, "save_every": 0, "evaluate_every": 1} | changes)


def test_learns_and_leaves_a_card(tmp_path):
    for name, split in data().items():
        pack(tmp_path / f"set_{name}.npz", split)
    demo = DemoNet(2, widths=(8,), strides=(2,), stem=4, rngs=nnx.Rngs(0))
    changes = {"learning_rate": 0.05, "layer": "auto", "data": str(tmp_path / "set"), "pad": 0}
    model = classifier.main(replace(short(tmp_path / "run"), **changes), demo)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["test_accuracy"] == 1
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["classes"] == ["red", "green"]
    assert card["preprocess"]["size"] == [8, 8]
    assert card["figures"]["pointing_random"] == 0.25
    assert model.stem.norm.use_running_average


def test_same_seed_same_weights(tmp_path):
    runs = {name: short(tmp_path / name, epochs=1) for name in ("first", "again")}
    runs["other"] = replace(runs["first"], out=str(tmp_path / "other"), seed=1)
    first, again, other = (classifier.main(run, Net(), data()) for run in runs.values())
    assert same(first, again)
    assert not same(first, other)


def test_goes_on_from_the_checkpoint(tmp_path, monkeypatch):
    run = short(tmp_path / "run", save_every=3)
    whole = classifier.main(replace(run, out=str(tmp_path / "whole")), Net(), data())
    batches = loop.batches

    def power_cut(*args):
        yield from itertools.islice(batches(*args), 8)
        raise RuntimeError("power cut")

    monkeypatch.setattr(loop, "batches", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        classifier.main(run, Net(), data())
    monkeypatch.setattr(loop, "batches", batches)
    halves = classifier.main(run, Net(seed=5), data())
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert same(whole, halves)


def test_stops_when_time_is_up(tmp_path, capsys):
    run = short(tmp_path, epochs=1, time_budget=1e-9)
    classifier.main(run, Net(), data())
    assert "time is up: 3 steps are left" in capsys.readouterr().err
    assert not (tmp_path / "model.json").exists()
    classifier.main(replace(run, time_budget=0.0), Net(), data())
    assert (tmp_path / "model.json").exists()


def test_starts_from_weights(tmp_path):
    first = classifier.main(short(tmp_path / "a", epochs=1), Net(), data())
    run = short(tmp_path / "b", epochs=1, learning_rate=0.0, half=True)
    run = replace(run, start=str(tmp_path / "a" / "model.safetensors"))
    second = classifier.main(run, Net(1), data())
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (first, second)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "a" / "model.safetensors").unlink()  # of no use to a run that has a checkpoint
    assert same(classifier.main(run, Net(1), data()), second)
    third = classifier.load(Net(2), tmp_path / "b" / "model.safetensors")
    kernels = (m.layer.kernel[...] for m in (second, third))
    np.testing.assert_array_equal(*(k.astype(jnp.float16) for k in kernels))


def test_averages_are_those_of_the_weights(tmp_path):
    few = {
        name: split._replace(**{k: getattr(split, k)[:8] for k in ("images", "labels")})
        for name, split in data().items()
    }
    plain, averaged = (
        classifier.main(short(tmp_path / str(ema), epochs=1, ema=ema), Net(), few)
        for ema in (0.0, 0.75)
    )
    for start, new, mean in zip(*map(weights, (Net(), plain, averaged)), strict=True):
        np.testing.assert_allclose(mean, 0.75 * start + 0.25 * new, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("select", ["val", "test"])
def test_the_best_weights_count_where_that_is_asked_for(tmp_path, select):
    noisy = pictures(64, 2)._replace(labels=np.random.default_rng(0).integers(0, 2, 64, np.int32))
    splits = data() | {"val": noisy, "test": noisy._replace(labels=1 - noisy.labels)}
    run = short(tmp_path, learning_rate=0.5, select=select, ema=0.0, drops=())
    model = classifier.main(run, Net(), splits)
    rows = read_log(tmp_path / "log.jsonl")
    scores = [row[f"{select}_accuracy"] for row in rows]
    card = json.loads((tmp_path / "model.json").read_text())
    best = max(row["step"] for row in rows if row[f"{select}_accuracy"] == max(scores))
    assert card["selected"] == f"step {best}, the best on {select}"
    assert card["figures"][f"{select}_accuracy"] == max(scores)
    found = classifier.evaluate(model, splits["val"], run)
    assert found["accuracy"] == pytest.approx(card["figures"]["val_accuracy"])
    assert found["images"] == 64


def test_nan_stops_with_a_message(tmp_path):
    message = r"the (loss|norm of the gradient) is (nan|inf) in epoch 0.*learning rate below"
    with pytest.raises(FloatingPointError, match=message):
        classifier.main(short(tmp_path, learning_rate=1e30), Net(), data())


def test_every_head_has_its_loss():
    class Two(nnx.Module):
        def forward(self, x):
            return {"logits": x[:, 0, 0], "aux_logits": 2 * x[:, 1, 1], "attention": x[..., :1]}

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)), jnp.bfloat16)
    labels = jnp.array([0, 1, 2, 0])
    loss, out = classifier.loss_fn(Two(), x, labels)
    expected = 0
    for logits in (x[:, 0, 0], 2 * x[:, 1, 1]):
        p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
        expected -= p[np.arange(4), labels].mean()
    assert loss.dtype == out["logits"].dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    smooth, _ = classifier.loss_fn(Two(), x, labels, 0.3)
    assert smooth != loss


def test_mixed_precision_keeps_weights_and_losses_wide():
    options = ("lfi_cam_resnet8", 4, ["width=2"], "bfloat16")
    model = nnx.eval_shape(lambda: networks.build(*options))
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.float32.dtype}
    out = nnx.eval_shape(lambda m: classifier.outputs(m, jnp.zeros((1, 16, 16, 3))), model)
    assert out["features"].dtype == jnp.bfloat16
    assert out["logits"].dtype == out["attention"].dtype == jnp.float32
    with pytest.raises(ValueError, match="demo computes in float32 only, not in bfloat16"):
        networks.build("demo", 4, precision="bfloat16")


def test_what_maps_are_like():
    maps = jnp.array([[[0.0, 1.0], [0.0, 1.0]], [[0.25] * 2] * 2])[..., None]
    w = jnp.array([[0.5, 0.5, 0, 0], [0.25] * 4])
    features = jnp.zeros((2, 2, 2, 4)).at[0, 0, 0, 0].set(1.0)
    found = attention.health({"attention": maps, "importance": w, "features": features})
    expected = {
        "attention_mean": [0.5, 0.25],
        "attention_above_half": [0.5, 0],
        "attention_entropy": [0.5, 1],
        "attention_constant": [0, 1],
        "importance_effective": [0.5, 1],
        "importance_max": [0.5, 0.25],
        "dead_channels": [0.75, 1],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
    assert attention.health({"logits": w}) == {}


def test_where_maps_lie():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 2], maps[0, 3, 3], maps[1, 0, 0] = 3, 1, 1
    boxes = np.array([[2, 1, 2, 2], [1, 1, 3, 3]])
    found = attention.localise(maps, boxes, (4, 4))
    assert found == {"attention_pointing": 0.5, "attention_energy": 0.375}
    assert attention.steadiness(maps, None) == {}
    constant = np.concatenate([maps, np.ones((1, 4, 4), np.float32)])
    assert attention.steadiness(constant, 5 + 2 * constant)["attention_steadiness"] == (
        pytest.approx(1, abs=1e-6)
    )


def test_missing_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere_train\.npz.*--data"):
        classifier.load_data(classifier.Config(str(tmp_path / "nowhere"), "out"))
    np.savez(tmp_path / "set_val.npz", labels=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks \['blob', 'offsets', 'names'\].*'labels'"):
        load_split(tmp_path / "set_val.npz")


def test_packed_pictures_come_back_or_say_what_is_wrong(tmp_path):
    split, path = pictures(6), tmp_path / "set.npz"
    pack(path, split)
    found = load_split(path)
    np.testing.assert_array_equal(found.images, split.images)
    assert found.names == ("red", "green")
    pack(path, split, names=["red"])
    with pytest.raises(ValueError, match=r"has the label 1; there are 1 classes, 0 to 0"):
        load_split(path)
    pack(path, split._replace(images=[*split.images[:5], split.images[5][:4]]))
    with pytest.raises(ValueError, match=r"mixed sizes, such as \(4, 8\) and \(8, 8\)"):
        load_split(path)


def test_broken_files_of_packed_pictures(tmp_path):
    split, path = pictures(6), tmp_path / "set.npz"
    pack(path, split, labels=split.labels[:4])
    with pytest.raises(ValueError, match="has 6 pictures and 4 labels"):
        load_split(path)
    with np.load(path) as packed:
        blob = np.concatenate([np.zeros(8, np.uint8), packed["blob"][8:]])
    pack(path, split, blob=blob)
    with pytest.raises(ValueError, match=r"picture 0 of .*set\.npz is none, or broken"):
        load_split(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot read .*set\.npz: it is no \.npz, or cut short"):
        load_split(path)


def test_nothing_points_into_boxes_that_cover_all():
    boxes = np.array([[0, 0, 7, 7]] * 6)
    assert pointing(Net(), np.zeros((6, 8, 8, 3)), np.zeros(6, int), boxes) == {}


def test_a_bar_with_figures_and_the_time_that_is_left(tmp_path, capsys):
    with journal(tmp_path, 0, 20, shown=True) as tell:
        tell.tick(5, {"loss": 0.25, "accuracy": 0.5, "images/s": 120.0})
        tell.write({"step": 5, "loss": 0.25})
    shown = capsys.readouterr().err
    assert re.search(r"5/20 loss 0\.25  accuracy 0\.5  images/s 120 .*(-|\d+):", shown)


def test_a_step_of_mixed_precision(tmp_path):
    options = {"model": "lfi_cam_resnet8", "model_options": ("width=2",), "precision": "bfloat16"}
    c = short(tmp_path, epochs=1, ema=0.0, layer="", **options)
    model = classifier.main(c, None, data())
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.float32.dtype}
    (row,) = read_log(tmp_path / "log.jsonl")
    assert 0 < row["loss"] < 2
    assert 0 < row["grad_norm"] < 100


def test_augment_without_changes_is_the_picture_or_its_mirror_image():
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    x = np.asarray(augment(jax.random.key(0), images, flip=True)) * 255
    for got, image in zip(x, images, strict=True):
        assert min(abs(got - image).max(), abs(got - image[:, ::-1]).max()) < 1


def test_augment_resizes_within_range_and_depends_on_the_key():
    images = np.full((4, 12, 12, 3), 200, np.uint8)
    changes = {"pad": 2, "flip": True, "min_scale": 0.3, "stretch": 1.5, "jitter": 0.4}
    changes |= {"grey": 0.1, "cast": 0.1, "erase": 0.5}
    change = jax.jit(lambda key: augment(key, images, 20, **changes))
    a, b = (change(jax.random.key(seed)) for seed in (0, 1))
    assert a.shape == (4, 20, 20, 3)
    assert a.min() >= 0
    assert a.max() <= 1
    assert (a != b).any()


def test_boxes_include_both_ends():
    boxes = np.array([[1, 2, 3, 5], [1, 2, 3, 5]])
    assert inside(np.array([[5, 3], [5, 4]]), boxes) == 0.5
    assert cover(boxes, (6, 8)) == pytest.approx([0.25, 0.25])
