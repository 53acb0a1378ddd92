"""Open the network of a run: with the weights it chose at its end, or those of a checkpoint."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from jaxfmi.models.pretrained import load
from jaxfmi.train import checkpoint, networks
from jaxfmi.train.config import Config, read_file
from jaxfmi.train.data import Data, Records, Split, load_data
from jaxfmi.train.options import make
from jaxfmi.train.sources import open_source

__all__ = ["Finished", "open_data", "open_run"]

CHOICES = ("", "last", "best")


class Finished(NamedTuple):
    """The options of a run, its network in eval mode, and the names of its classes."""

    config: Config
    model: nnx.Module
    classes: tuple[str, ...]

    def check_classes(self, split: Split | Records, where: str) -> None:
        """Raise ValueError where the classes of data are not the run's, in its order."""
        if tuple(split.names) != self.classes:
            ours, theirs = set(self.classes), set(split.names)
            odd = sorted(ours ^ theirs)
            what = f"such as {odd[0]!r}, which only one of them has" if odd else "in their order"
            raise ValueError(
                f"{where} has {len(split.names)} classes, the run {len(self.classes)}; they "
                f"differ, {what}"
            )


def open_run(run: str | Path, weights: str = "") -> Finished:
    """Open a run.

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
        classes = tuple(json.loads((run / "model.json").read_text())["classes"])
        model = _blank(config, len(classes))
        return Finished(config, load(model, run / "model.safetensors"), classes)
    step = checkpoint.latest(folder) if weights == "last" else checkpoint.best(folder)
    if step is None:
        raise FileNotFoundError(f"the run in '{run}' has no {weights} checkpoint")
    classes = tuple(checkpoint.read_meta(folder, step)["classes"])
    model = _blank(config, len(classes))
    _fill(model, checkpoint.read(folder, step))
    return Finished(config, model, classes)


def open_data(config: Config, *, own: bool) -> Data:
    """The data of a run, or (not its own) other data as it is: nothing of it is held out.

    Raises what `load_data` raises.
    """
    return load_data(config) if own else open_source(config.data, config.data_dir)


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
