"""The LFI-CAM benchmark's runs and its page: what is listed, what goes on, what is said."""

import math
import sys
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("sklearn", reason="needs the extra `train`: scikit-learn")
import attention_page as page
import attention_runs as runs

from jaxfmi.train import classifier
from jaxfmi.train.config import Config
from jaxfmi.train.schedule import optimizer


def test_every_arm_at_the_first_setting_and_the_methods_at_the_others():
    found = runs.listed(runs.EXPERIMENTS["G1"], "abc", (0, 1, 2))
    assert len(found) == len(set(found)) == 33
    assert {r.arm for r in found if r.setting == "a"} == set(runs.ARMS)
    assert {r.arm for r in found if r.setting == "c"} == {"baseline", "lfi", "abn"}


class Counter:
    """A trainer whose weights count its epochs."""

    experiment = SimpleNamespace(epochs=5)

    def start(self, seed):
        return runs.State({"w": np.zeros(2)}, {"s": np.ones(1)}, (np.zeros(2),), 0)

    def epoch(self, state, seed):
        params = {"w": state.params["w"] + 1}
        return runs.State(params, state.stats, state.moments, state.epoch + 1), float(state.epoch)


def test_a_run_that_is_cut_goes_on(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    run = runs.Run("lfi", "a", 0)
    with pytest.raises(TimeoutError, match="lfi-a-0 stops after epoch 3"):
        runs.train(Counter(), run, tmp_path, deadline=2)
    state, losses = runs.train(Counter(), run, tmp_path, deadline=100)
    assert state.epoch == 5
    np.testing.assert_array_equal(state.params["w"], [5, 5])
    assert losses == [0, 1, 2, 3, 4]
    assert not list(tmp_path.iterdir())


def test_boxes_are_masks():
    mask = runs.boxed(np.array([[1, 2, 3, 2]]), 6)[0]
    assert mask.sum() == 3
    assert mask[2, 1:4].all()


def made_up(lfi=0.9, even=0.9, share=0.8):
    """A result in which every arm has one figure for everything, and seeds differ by .01."""
    levels = {"baseline": 0.7, "deep": 0.75, "uniform": even, "lfi": lfi, "abn": 0.4}
    result = {"runs": [], "steadiness": {}, "no net": {}, "chance": {"box": 0.2}}
    for (arm, level), setting, seed in product(levels.items(), ("a", "b", "untrained"), (0, 1, 2)):
        value = (0.3 if setting == "untrained" else level) + 0.01 * (seed - 1)
        names = ["A", "CAM", "A inverted"]
        figures = {"box": dict.fromkeys(page.MEASURES, value)}
        maps = dict.fromkeys(names, figures) | {
            "A inverted": {"box": dict.fromkeys(page.MEASURES, 1 - value)}
        }
        one = {"arm": arm, "setting": setting, "seed": seed, "parameters": 7, "maps": maps}
        result["runs"].append(one | {"accuracy": {"own": value}})
    for arm, alike, chance in (("lfi", 0.7, 0.3), ("abn", share, 0.75)):
        figures = {"IoU": alike, "chance": chance}
        result["steadiness"][f"{arm} A, seed differs"] = figures
    return result


def verdicts(result):
    lines = (line.split("**") for line in page.pass_lines(result) if "**" in line)
    return {parts[0].split(")")[0][3:]: parts[1] for parts in lines}


def test_pass_lines():
    assert verdicts(made_up()) == {
        "i": "met",
        "ii": "met",
        "iii": "not met",
        "iv": "met",
        "v": "not met",
        "vii": "met",
    }
    assert verdicts(made_up(even=0.8, share=0.76))["v"] == "met"
    assert verdicts(made_up(lfi=0.5))["i"] == "not met"
    assert verdicts(made_up(lfi=0.55))["ii"] == "not met"  # ABN's, inverted, has .6


def test_steadier_than_abn_and_above_chance():
    assert verdicts(made_up(share=0.5))["iii"] == "not met"  # below its own chance
    result = made_up(share=0.5)
    result["steadiness"]["abn A, seed differs"]["chance"] = 0.4
    assert verdicts(result)["iii"] == "met"
    assert "0.400 to 0.100" in "\n".join(page.pass_lines(result))


def test_figures_have_mean_range_and_interval():
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert page.told([0.1, 0.2, 0.3]) == f"0.200 [0.100–0.300] ±{half:.3f}"
    assert page.told([0.5]) == "0.500"
    assert page.told([math.nan]) == "–"


@pytest.mark.parametrize("arm", ["lfi", pytest.param("abn", marks=pytest.mark.slow)])
def test_a_step_is_that_of_the_training_loop(arm):
    """The same weights, pictures and key: the same network after two steps."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 8, 8, 3), np.uint8), np.arange(8) % 3
    setting = runs.Setting(batch=4, rate=0.1, decay=1e-3)
    experiment = runs.Experiment(None, 8, 4, 3, {"a": setting}, pad=1, flip=True)
    few = (images, labels, images, labels)
    data = runs.Data(*few, {}, np.zeros(8, bool), 8, 3, [0.4, 0.5, 0.6], [0.2, 0.3, 0.2])
    trainer = runs.Trainer(experiment, data, arm, setting)
    state, key = trainer.start(0), jax.random.key(7)

    config = Config(
        "",
        "",
        epochs=3,
        batch_size=4,
        learning_rate=0.1,
        weight_decay=1e-3,
        pad=1,
        flip=True,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
    model = trainer.build(rngs=nnx.Rngs(0))
    whole = nnx.Optimizer(model, optimizer(config, trainer.steps), wrt=nnx.Param)
    graph, held = zip(*map(nnx.split, (model, whole)), strict=True)
    sums = dict.fromkeys(("steps", "loss", "grad_norm", *classifier.HEADS.values(), "aux_loss"), 0)
    held = classifier.State(*held, None, sums, key)
    step = jax.jit(partial(classifier.train_step, graph, config=config))
    inner = state[:3]
    for number, index in enumerate((np.arange(4), np.arange(4, 8))):
        given = jax.random.fold_in(key, number)
        inner, loss = trainer._one(inner, (index, given), trainer.images, trainer.labels)
        before = float(held.sums["loss"])
        held = step(held, images[index], labels[index])
        np.testing.assert_allclose(loss, held.sums["loss"] - before, rtol=1e-5)
    theirs = nnx.merge(graph[0], held[0])
    for mine, kind in zip(inner, (nnx.Param, nnx.BatchStat), strict=False):
        pairs = zip(*map(jax.tree.leaves, (mine, nnx.state(theirs, kind))), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
