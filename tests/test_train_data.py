"""Where pictures come from, in which order, and what happens to them on the way."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from training_run import Net, config, pictures

from jaxfmi.train import classifier, sources
from jaxfmi.train.augment import augment, centre_crop, normalise, random_crop
from jaxfmi.train.data import batches, count, load_data, spaced, sweep
from jaxfmi.train.loop import State
from jaxfmi.train.sources import Records, Split, hold_out, open_source


def save(path, size, colour, classes=("cat", "dog"), n=3):
    for k, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.full((*size, 3), colour + 20 * k + i, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "set" / "train", (10, 12), 40)
    save(tmp_path / "set" / "validation", (10, 12), 140, n=1)
    return tmp_path / "set"


def test_every_epoch_is_another_order_of_all_pictures(tmp_path):
    split = pictures(20)._replace(labels=np.arange(20, dtype=np.int32), names=tuple("x" * 20))
    run = config(tmp_path, batch_size=5, epochs=3)
    labels = np.stack([b.labels for b in batches(split, run)]).reshape(3, 20)
    assert (np.sort(labels, 1) == np.arange(20)).all()
    assert (labels[0] != labels[1]).any()
    assert (labels[1] != labels[2]).any()
    again = [b.labels for b in batches(split, run, start=6)]
    np.testing.assert_array_equal(np.concatenate(again), labels.ravel()[30:])
    other = [b.labels for b in batches(split, replace(run, seed=1))]
    assert (np.concatenate(other) != labels.ravel()).any()


def test_an_epoch_leaves_out_what_fills_no_batch(tmp_path):
    run = config(tmp_path, batch_size=8, epochs=2)
    assert len([*batches(pictures(20), run)]) == 4
    with pytest.raises(ValueError, match="7 pictures to train on fill no batch of 8"):
        batches(pictures(7), run)


def test_a_sweep_meets_every_picture_once(tmp_path):
    run, split = config(tmp_path, batch_size=8), pictures(20)
    found = [*sweep(split, run)]
    assert all(b.images.shape == (8, 8, 8, 3) for b in found)
    images = np.concatenate([b.images for b in found])
    np.testing.assert_array_equal(images[:20], split.images)
    np.testing.assert_array_equal(images[20:], split.images[[19] * 4])
    (few,) = sweep(split, run, 3)
    np.testing.assert_array_equal(few.images[:3], split.images[[0, 6, 13]])
    np.testing.assert_array_equal(spaced(20, 3), [0, 6, 13])
    np.testing.assert_array_equal(spaced(2, 3), [0, 1])


def test_a_folder_of_class_folders(folder, tmp_path):
    run = config(tmp_path / "out", batch_size=2)
    data = load_data(replace(run, data=str(folder)))
    assert set(data) == {"train", "val"}
    assert data["train"].names == ("cat", "dog")
    found = [*sweep(data["train"], run)]
    assert np.concatenate([b.labels for b in found]).tolist() == [0, 0, 0, 1, 1, 1]
    first = np.concatenate([b.images for b in found])[:, 0, 0, 0]
    assert first.tolist() == [40, 41, 42, 60, 61, 62]


def test_pictures_that_are_cropped_as_they_are_read_are_not_cropped_again(tmp_path):
    """A step sees what was read; without ``size`` it crops itself."""
    read = config(tmp_path, batch_size=4, size=8, min_scale=0.3, stretch=1.3, ema=0.0)
    split = pictures(4)

    def losses(c):
        model = Net()
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        (graph, weights), (rest, momentum) = nnx.split(model), nnx.split(optimizer)
        sums = {name: jnp.zeros(()) for name in ("steps", "grad_norm", "loss", "accuracy")}
        state = State(weights, momentum, nnx.State({}), sums, jax.random.key(0))
        step = classifier.train_step
        return step((graph, rest), state, split.images, split.labels, config=c).sums["loss"]

    whole = losses(replace(read, min_scale=1.0, stretch=1.0))
    assert losses(read) == whole
    assert losses(replace(read, size=0)) != whole


class Unlabelled:
    """A builder whose test split has no labels, like ImageNet's."""

    name = "unlabelled"

    def __init__(self):
        label = SimpleNamespace(names=["red", "green"])
        features = {"image": SimpleNamespace(shape=(None, None, 3)), "label": label}
        self.info = SimpleNamespace(features=features, supervised_keys=None)

    def as_data_source(self, split):
        label = -1 if split == "test" else 1
        return [{"image": np.zeros((4, 4, 3), np.uint8), "label": label}] * 3


def test_a_split_without_labels_is_left_out():
    assert sources._records(Unlabelled(), "test") is None
    assert sources._records(Unlabelled(), "validation").length == 3


@pytest.mark.parametrize("workers", [2])
def test_worker_processes_change_nothing(folder, tmp_path, workers):
    run = config(tmp_path, batch_size=2, epochs=2, size=6, min_scale=0.3, stretch=1.3)
    split = open_source(str(folder))["train"]
    alone = [*batches(split, run)]
    for a, b in zip(alone, batches(split, replace(run, workers=workers)), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_mixed_sizes_need_a_size(tmp_path):
    save(tmp_path / "set" / "train", (10, 12), 0)
    Image.new("RGB", (9, 9)).save(tmp_path / "set" / "train" / "cat" / "odd.png")
    split, run = open_source(str(tmp_path / "set"))["train"], config(tmp_path, batch_size=7)
    with pytest.raises(ValueError, match=r"mixed sizes, such as \(9, 9\) and \(10, 12\).*--size N"):
        next(batches(split, run))
    with pytest.raises(ValueError, match="mixed sizes"):
        next(sweep(split, run))
    assert next(batches(split, replace(run, size=8))).images.shape == (7, 8, 8, 3)
    assert next(sweep(split, replace(run, size=8))).images.shape == (7, 8, 8, 3)


def test_broken_folders(folder, tmp_path):
    (folder / "validation" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"validation' has the class 'cow', of which 'train' has"):
        open_source(str(folder))
    (folder / "validation" / "cow").rmdir()
    (folder / "train" / "cat" / "0.png").write_bytes(b"no picture")
    split = open_source(str(folder))["train"]
    with pytest.raises(ValueError, match=r"cannot read '.*0.png': it is no picture, or broken"):
        next(sweep(split, config(tmp_path)))


def test_what_is_not_there(tmp_path):
    run = config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no data at '\S*no where' .*--data takes"):
        load_data(replace(run, data=str(tmp_path / "no where")))
    save(tmp_path / "set" / "train", (4, 4), 0)
    only = replace(run, data=str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"has \['train'\] only: --hold-out"):
        load_data(only)
    assert set(load_data(replace(only, hold_out=1))) == {"train", "val"}
    with pytest.raises(ValueError, match=r"--select test, but .* has \['train', 'val'\]"):
        load_data(replace(only, hold_out=1, select="test"))


def test_labels_beyond_the_classes():
    read = pictures(4)
    wrong = Records(lambda i: (read.images[i], 5 * i), 4, ("red", "green"))
    with pytest.raises(ValueError, match=r"has the label 5; there are 2 classes, 0 to 1"):
        next(sweep(wrong, config("out", batch_size=4)))


def test_holding_out_takes_the_same_number_of_each_class(tmp_path):
    data = {"train": pictures(20), "val": pictures(4, 1)}
    parts = hold_out(data, 3, seed=0)
    assert [*parts] == ["train", "val", "test"]
    assert parts["test"] is data["val"]
    assert np.bincount(parts["val"].labels).tolist() == [3, 3]
    assert count(parts["train"]) == 14
    rows = [i.tobytes() for name in ("train", "val") for i in parts[name].images]
    assert sorted(rows) == sorted(i.tobytes() for i in data["train"].images)
    assert parts["val"].boxes.shape == (6, 4)
    other = hold_out(data, 3, seed=1)
    assert (other["val"].images != parts["val"].images).any()
    with pytest.raises(ValueError, match=r"cannot hold out 10 pictures of a class of 10"):
        hold_out(data, 10, 0)


def test_prepared_data_sets_need_no_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `train`")
    from jaxfmi.train.prepare import prepare

    data = {"train": pictures(12), "test": pictures(6, 1)}
    masks = {name: split.images[..., 0] > 100 for name, split in data.items()}
    folder = prepare("two_colours", data, tmp_path, masks)
    source = tfds.builder("two_colours", data_dir=tmp_path).as_data_source(split="train")
    assert len(source) == 12
    assert source[0]["image"].dtype == np.uint8
    np.testing.assert_array_equal(source[0]["mask"], source[0]["image"][..., 0] > 100)
    for found in (open_source(str(folder)), open_source("two_colours", str(tmp_path))):
        for name, split in data.items():
            got = found[name]
            assert got.names == ("red", "green")
            order, other = (np.argsort([i.tobytes() for i in s.images]) for s in (got, split))
            np.testing.assert_array_equal(got.images[order], split.images[other])
            np.testing.assert_array_equal(got.labels[order], split.labels[other])
            np.testing.assert_array_equal(got.boxes[order], split.boxes[other])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "cats_vs_dogs", "imagenet2012"])
def test_what_prepares_a_data_set_is_said(tmp_path, name):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `train`")
    command = rf"{name} is not prepared in .*`tfds build {name} --file_format=array_record"
    with pytest.raises(FileNotFoundError, match=command) as error:
        open_source(name, str(tmp_path))
    assert ("--manual_dir=FOLDER" in str(error.value)) == (name == "imagenet2012")


def test_packed_pictures_can_be_prepared_only_from_memory(folder, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `train`")
    from jaxfmi.train.prepare import prepare

    with pytest.raises(ValueError, match="the split 'train' is not in memory: Records"):
        prepare("folder", open_source(str(folder)), tmp_path)


def test_splits_that_differ_are_not_prepared(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `train`")
    from jaxfmi.train.prepare import prepare

    data = {"train": pictures(6), "test": pictures(4, 1)._replace(names=("green", "red"))}
    with pytest.raises(ValueError, match=r"red, green \(2\).* in train, green, red .* in test"):
        prepare("colours", data, tmp_path)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\), boxes in train, .*\(6, 6, 3\), boxes in"):
        prepare("colours", {"train": pictures(6), "test": pictures(4, 1, 6)}, tmp_path)


def test_digits_by_name():
    pytest.importorskip("sklearn", reason="needs the extra `train`: scikit-learn")
    data = open_source("digits_on_textures(train=6,test=4,classes=2,size=32)")
    assert data["train"].images.shape == (6, 32, 32, 3)
    assert data["test"].names == ("below 5", "5 or more")
    with pytest.raises(ValueError, match=r"can't be drawn with \{'side': 3\}: .*'side'"):
        open_source("digits_on_textures(side=3)")


def test_padding_and_cropping_moves_the_picture():
    images = np.random.default_rng(0).integers(1, 256, (16, 6, 7, 3), np.uint8)
    moved = np.asarray(jax.jit(lambda k: augment(k, images, pad=2))(jax.random.key(0))) * 255
    around = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for got, image in zip(moved, around, strict=True):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.abs(got - image[i : i + 6, j : j + 7]).max() < 0.01
        ]
        assert len(fits) == 1
        places |= {*fits}
    assert len(places) > 5


def test_without_changes_the_picture_stays():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    x = augment(jax.random.key(0), images)
    np.testing.assert_allclose(x, images / np.float32(255), rtol=2e-7)


def test_random_crops_show_a_part_of_the_picture():
    rng = np.random.default_rng(0)
    ramp = np.arange(60, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (40, 60, 3)).copy()
    crops = [random_crop(rng, image, 16, 0.08, 4 / 3)[..., 0].astype(int) for _ in range(50)]
    assert all(c.shape == (16, 16) for c in crops)
    assert all((np.diff(c, axis=1) >= 0).all() for c in crops)
    widths = [c[0, -1] - c[0, 0] for c in crops]
    assert min(widths) < 20
    assert max(widths) > 30
    assert random_crop(rng, image, 16, 1.0, 1.0)[..., 0].min() >= 10  # the middle, nothing fits


def test_the_middle_is_what_resizing_to_256_and_cutting_224_gives():
    rows, columns = np.mgrid[:300, :400]
    image = np.stack([rows * 0.8, columns * 0.6, (rows + columns) * 0.3], -1).astype(np.uint8)
    whole = Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((58, 16, 58 + 224, 16 + 224)), int)
    assert np.abs(centre_crop(image, 224) - expected).max() <= 2


def test_normalising_keeps_the_type():
    x = normalise(jnp.ones((1, 2, 2, 3)), (0.5, 0.5, 0.5), (0.5, 0.25, 1.0))
    np.testing.assert_array_equal(x[0, 0, 0], [1, 2, 0.5])
    assert isinstance(pictures(2), Split)
