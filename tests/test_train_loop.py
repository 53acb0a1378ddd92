"""Runs that are stopped by force, on many devices, on a full disk, or that should never start."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training_run import Net, config, data, pictures, weights

from jaxfmi.models.pretrained import save
from jaxfmi.train import checkpoint, classifier, journal, loop

PROGRAM = Path(__file__).with_name("training_run.py")


def start(out):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, PROGRAM, out], env=environment, **pipes)


def send(process, out, number, after):
    """Send a signal once so many steps are saved."""
    while (checkpoint.latest(out / "checkpoint") or 0) < after:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return errors


def test_killed_and_terminated_anywhere_ends_as_if_it_had_not_been(tmp_path):
    chance = random.Random()
    whole = classifier.main(config(tmp_path / "whole"), Net(), data())
    (out := tmp_path / "run").mkdir()
    killed = start(out)
    send(killed, out, signal.SIGKILL, chance.randint(1, 15))
    assert killed.returncode == -signal.SIGKILL
    first = checkpoint.latest(out / "checkpoint")
    assert 0 < first < 40
    stopped = start(out)
    errors = send(stopped, out, signal.SIGTERM, min(first + chance.randint(1, 10), 36))
    assert stopped.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM" in errors
    assert "Traceback" not in errors
    assert first < checkpoint.latest(out / "checkpoint") < 40
    last = start(out)
    assert last.wait(120) == 0, last.communicate()
    last.communicate()
    with np.load(out / "weights.npz") as found:
        for a, b in zip(weights(whole), found.values(), strict=True):
            np.testing.assert_array_equal(a, b)
    rows, expected = (journal.read_log(o / "log.jsonl") for o in (out, tmp_path / "whole"))
    for row in [*rows, *expected]:
        for measured in ("seconds", "images_per_second"):
            row.pop(measured)
    assert rows == expected


def test_a_signal_that_ends_what_reads_saves_the_last_step(tmp_path, monkeypatch, capsys):
    """As where the processes that read get it too: the next batch does not come."""
    real = loop.batches

    def broken(*args):
        for count, batch in enumerate(real(*args)):
            if count == 6:
                signal.raise_signal(signal.SIGTERM)
                raise RuntimeError("a worker process was terminated unexpectedly")
            yield batch

    monkeypatch.setattr(loop, "batches", broken)
    c = config(tmp_path, save_every=4)
    with pytest.raises(SystemExit):
        classifier.main(c, Net(), data())
    assert checkpoint.latest(tmp_path / "checkpoint") == 6
    assert "stopped by SIGTERM: step 6 is saved" in capsys.readouterr().err


class Looking(Net):
    """A network with a map that changes as it learns."""

    def forward(self, x):
        maps = jax.nn.sigmoid(x @ self.layer.kernel[...][:3, :1])
        return {"logits": self(x * maps), "attention": maps}


def test_steadiness_of_attention_goes_on_after_a_stop(tmp_path):
    c = config(tmp_path / "whole", epochs=3, save_every=4, evaluate_every=1, keep=3)
    classifier.main(c, Looking(), data())
    shutil.copytree(c.out, tmp_path / "again")
    for step in (8, 12):  # of 4 in an epoch
        shutil.rmtree(tmp_path / "again" / "checkpoint" / str(step))
    classifier.main(replace(c, out=str(tmp_path / "again")), Looking(), data())
    rows, expected = (
        [row.get("test_attention_steadiness") for row in journal.read_log(out / "log.jsonl")]
        for out in (tmp_path / "again", tmp_path / "whole")
    )
    assert rows == expected
    assert expected[0] is None
    assert all(0 < steady < 1 for steady in expected[1:])


EIGHT = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
from flax import nnx
from pathlib import Path
from training_run import Net, config, data, weights
from jaxfmi.models import abn_resnet8, lfi_cam_resnet8
from jaxfmi.train import classifier
from jaxfmi.train.checkpoint import latest, read
from jaxfmi.train.journal import read_log

assert len(jax.devices()) == 8
build = {"small": Net}
build |= {k: lambda m=m: m(width=4, num_classes=2) for k, m in
          {"lfi": lfi_cam_resnet8, "abn": abn_resnet8}.items()}


def trained(name, devices, time_budget=0.0):
    model, out = build[KIND](), Path(OUT) / name
    wide = lambda a: a.astype("float64") if a.dtype == "float32" else a
    nnx.update(model, jax.tree.map(wide, nnx.state(model)))
    start = weights(model)
    options = {"devices": devices, "time_budget": time_budget}
    c = config(out, epochs=2, save_every=0, evaluate_every=1, ema=0.9, **options)
    return start, weights(classifier.main(c, model, data())), out


def equal(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, **tolerance)


start, one, folder = trained("one", 1)
_, eight, other = trained("eight", 8)
assert all(a.dtype == "float64" for a in one)
equal(one, eight, atol=TOLERANCE)
assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(start, one))
kept, also = (read(o / "checkpoint", latest(o / "checkpoint")) for o in (folder, other))
assert kept.keys() == also.keys()
equal([kept[k] for k in kept], [also[k] for k in kept], atol=TOLERANCE)
for row, like in zip(*(read_log(o / "log.jsonl") for o in (folder, other)), strict=True):
    assert row.keys() == like.keys()
    names = row.keys() - {"seconds", "images_per_second"}
    equal([row[k] for k in names], [like[k] for k in names], atol=TOLERANCE)
trained("moved", 1, time_budget=1e-9)
assert 0 < latest(Path(OUT) / "moved" / "checkpoint") < latest(folder / "checkpoint")
equal(one, trained("moved", 8)[1], atol=TOLERANCE)
print("equal")
"""


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("small", 1e-12), *(pytest.param(k, 1e-9, marks=pytest.mark.slow) for k in ("lfi", "abn"))],
)
def test_eight_devices_are_one(tmp_path, kind, tolerance):
    """Weights, optimizer, averages and figures; and a run that moves from one device to eight."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    given = f"OUT, KIND, TOLERANCE = {str(tmp_path)!r}, {kind!r}, {tolerance}"
    words = [sys.executable, "-c", f"{given}\n{EIGHT}"]
    run = subprocess.run(
        words, env=environment, cwd=PROGRAM.parent, capture_output=True, text=True, check=False
    )
    assert run.stdout.endswith("equal\n"), run.stderr


def test_a_batch_that_the_devices_do_not_divide(tmp_path):
    assert len(jax.devices()) == 4
    with pytest.raises(ValueError, match=r"a batch of 6 can't be spread evenly over 4 devices"):
        classifier.main(config(tmp_path, batch_size=6, devices=0), Net(), data())
    with pytest.raises(ValueError, match=r"--devices 9, but there are 4"):
        classifier.main(config(tmp_path, devices=9), Net(), data())


def test_another_number_of_classes_than_the_network(tmp_path):
    three = {k: v._replace(names=("red", "green", "blue")) for k, v in data().items()}
    train = three["train"]
    with pytest.raises(ValueError, match=r"the data has 3 classes, but the network gives \(1, 2\)"):
        classifier.main(config(tmp_path), Net(), three)
    with pytest.raises(ValueError, match=r"the data has 3 classes, but the network gives \(1, 2\)"):
        classifier.evaluate(Net(), train, config(tmp_path))


def test_splits_of_other_classes(tmp_path):
    test = data()["test"]._replace(names=("green", "red"))
    with pytest.raises(ValueError, match="classes of test are green, red; those of train red, gre"):
        classifier.main(config(tmp_path), Net(), data() | {"test": test})


def test_data_in_memory_is_checked_first(tmp_path):
    for split, there in data().items():
        wrong = data() | {split: there._replace(labels=there.labels + 1)}
        with pytest.raises(ValueError, match=rf"{split} has the label 2; there are 2 classes"):
            classifier.main(config(tmp_path), Net(), wrong)
    with pytest.raises(ValueError, match=r"memory has \['train'\] only"):
        classifier.main(config(tmp_path), Net(), {"train": data()["train"]})
    with pytest.raises(ValueError, match=r"--select val, but memory has \['train', 'test'\]"):
        classifier.main(config(tmp_path, select="val"), Net(), data())
    with pytest.raises(ValueError, match=r"--devices -1, but there are 4"):
        classifier.main(config(tmp_path, devices=-1), Net(), data())
    assert not any(tmp_path.iterdir())


def test_a_network_without_tags_is_not_pointed_with(tmp_path):
    c = config(tmp_path / "run", layer="auto", epochs=1)
    classifier.main(c, Net(), data())
    figures = json.loads((tmp_path / "run" / "model.json").read_text())["figures"]
    assert figures["test_images"] == 8
    assert "pointing" not in figures
    with pytest.raises(ValueError, match="no tag 'block1'"):
        classifier.main(replace(c, layer="block1", out=str(tmp_path / "other")), Net(), data())
    assert not (tmp_path / "other").exists()


class Small(nnx.Module):
    def __init__(self, width=2):
        self.layer = nnx.Linear(width, width, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(width, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.layer(x[:, 0, : self.layer.in_features, 0]))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a short run of the small network, and its options."""
    options = config(tmp_path_factory.mktemp("done"), epochs=1, save_every=2, keep=2, ema=0.0)
    classifier.main(options, Small(), data())
    return options


def copy(done, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(done.out, out)
    return replace(done, out=str(out))


def test_the_checkpoint_of_another_network(done, tmp_path):
    with pytest.raises(ValueError, match=r"4' is of another network or recipe: .* arrays differ"):
        classifier.main(copy(done, tmp_path), Small(3), data())


def test_the_checkpoint_of_another_run(done, tmp_path):
    changed = replace(copy(done, tmp_path), learning_rate=0.5, note="free to change")
    with pytest.raises(ValueError, match=r"has learning_rate 0.01, not 0.5: give another --out"):
        classifier.main(changed, Small(), data())


def test_a_checkpoint_cut_short(done, tmp_path):
    again = copy(done, tmp_path)
    for file in Path(again.out, "checkpoint", "4", "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(
        ValueError, match=r"4' can't be read, .* also those of steps \[2\]"
    ) as error:
        classifier.main(again, Small(), data())
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(done, tmp_path):
    again = copy(done, tmp_path)
    folder = Path(again.out, "checkpoint")
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    assert checkpoint.latest(folder) == 2
    classifier.main(again, Small(), data())
    assert checkpoint.latest(folder) == 4


@contextmanager
def full_disk(size):
    """No file can be larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_the_weights_before(tmp_path):
    path, net = tmp_path / "model.safetensors", Net()
    save(net, path)
    before = path.read_bytes()
    with full_disk(256), pytest.raises(OSError, match=r"cannot write .*model\.safetensors"):
        save(Net(1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_was_being_written_is_cleared_away(done, tmp_path):
    again = copy(done, tmp_path)
    rest = Path(again.out, "checkpoint", "3.orbax-checkpoint-tmp")
    shutil.copytree(rest.with_name("2"), rest)
    classifier.main(replace(again, out=again.out), Small(), data())
    assert not rest.exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    state = {"a": np.random.default_rng(0).random(1 << 19)}
    checkpoint.save(tmp_path, 1, {"a": np.zeros(1 << 19)})
    with (
        full_disk(1 << 19),
        pytest.raises(OSError, match=r"cannot write .*; that of step 1 is there") as error,
    ):
        checkpoint.save(tmp_path, 2, state)
    assert "\n" not in str(error.value)
    step, found = checkpoint.restore(tmp_path, state)
    assert step == 1
    assert not found["a"].any()


def test_keeps_the_latest_and_the_best(tmp_path):
    state = {"a": jnp.arange(3.0), "key": jax.random.key(1)}
    with checkpoint.saving(tmp_path, keep=2) as save:
        for step, score in enumerate((0.1, 0.6, None, 0.2, None, 0.3), 1):
            save(step, state, {"position": step}, score)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]
    assert checkpoint.best(tmp_path) == 2
    assert checkpoint.read_meta(tmp_path, 5)["position"] == 5
    step, found = checkpoint.restore(tmp_path, state, 2)
    assert step == 2
    assert found["key"] == state["key"]


def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    train = pictures(32)
    options = config(tmp_path, epochs=2, ema=0.0)

    step = classifier.train_step
    with pytest.MonkeyPatch.context() as patch:

        def explode(graph, state, images, labels, **options):
            state = step(graph, state, images, labels, **options)
            late = state.optimizer["step"][...] > 5
            loss = jnp.where(late, jnp.nan, state.sums["loss"])
            return state._replace(sums=state.sums | {"loss": loss})

        patch.setattr(classifier, "train_step", explode)
        with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1.*step [45] is"):
            classifier.main(options, Net(), {"train": train, "test": train})
    assert checkpoint.latest(tmp_path / "checkpoint") == 5
