"""Open the network of a run: with the weights it chose at its end, or those of a checkpoint."""

import json
from pathlib import Path

import jax
from flax import nnx

from jaxfmi.models.pretrained import load
from jaxfmi.train import checkpoint, networks
from jaxfmi.train.config import Config, read_file
from jaxfmi.train.options import make

__all__ = ["open_run"]

CHOICES = ("", "last", "best")


def open_run(run: str | Path, weights: str = "") -> tuple[Config, nnx.Module]:
    """The options of a run and its network in eval mode.

    Args:
      run: the folder that the run wrote.
      weights: last or best, of the checkpoints (averaged, where the run averages); "" for
        `model.safetensors`, which a run leaves at its end.

    Raises:
      FileNotFoundError: the run has not written what is asked for.
      ValueError: it can't be read, or its network is none of those that have a name.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"no run in '{run}': it has no config.json")
    if weights not in CHOICES:
        raise ValueError(f"weights are last or best, got {weights!r}")
    config, folder = make(Config, read_file(run / "config.json")), run / "checkpoint"
    if not weights:
        if not (run / "model.json").is_file():
            raise FileNotFoundError(
                f"the run in '{run}' has not come to its end: ask for the last or best checkpoint"
            )
        model = _blank(config, len(json.loads((run / "model.json").read_text())["classes"]))
        return config, load(model, run / "model.safetensors")
    step = checkpoint.latest(folder) if weights == "last" else checkpoint.best(folder)
    if step is None:
        raise FileNotFoundError(f"the run in '{run}' has no {weights} checkpoint")
    model = _blank(config, len(checkpoint.read_meta(folder, step)["classes"]))
    _fill(model, checkpoint.read(folder, step))
    return config, model


def _blank(config: Config, classes: int) -> nnx.Module:
    options = config.model_options, config.precision, config.seed
    model = networks.build(config.model, classes, *options)
    model.eval()
    return model


def _fill(model: nnx.Module, arrays: dict) -> None:
    """Set the weights and statistics from a checkpoint: averages, where there are any."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    names = checkpoint.named(state)
    found = [arrays.get(f"average.{n}", arrays.get(f"model.{n}")) for n in names]
    missing = [n for n, array in zip(names, found, strict=True) if array is None]
    if missing:
        raise ValueError(f"the checkpoint lacks {missing[0]}: it is of another network")
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), found))
