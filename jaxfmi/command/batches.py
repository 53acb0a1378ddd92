"""Batches of an evaluation: samples become arrays, and what is measured becomes rows."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from jaxfmi.command.datasets import Data, Sample, to_region
from jaxfmi.command.tables import CURVE
from jaxfmi.metrics import Curve
from jaxfmi.models import Preprocess


class Batch(NamedTuple):
    """Samples that could be read, with what all methods share."""

    places: np.ndarray  #: in the data set
    samples: list[Sample]
    inputs: np.ndarray  #: [n, H, W, 3]
    regions: np.ndarray  #: bool [n, H, W]
    predicted: np.ndarray
    targets: np.ndarray
    chances: np.ndarray  #: probabilities of the targets


def load(
    data: Data,
    places: Iterable[int],
    *,
    preprocess: Preprocess,
    classify: Callable[[np.ndarray], np.ndarray],
    of_predicted: bool,
    fail: Callable[[str, str], None],
) -> Batch | None:
    """Read samples, and ask the network for their classes; None if none can be read.

    Args:
      data: the samples.
      places: those to read.
      preprocess: makes inputs of pictures.
      classify: ``inputs [n, H, W, 3] -> logits [n, classes]``.
      of_predicted: explain the predicted classes, not the labels.
      fail: called with the name and the reason of each picture that can't be read.
    """
    inputs = {}
    for place in places:
        try:
            inputs[place] = preprocess(data.samples[place].open())
        except ValueError as error:
            fail(data.samples[place].name, str(error))
    if not inputs:
        return None
    samples, x = [data.samples[place] for place in inputs], np.stack(list(inputs.values()))
    z = classify(x)
    predicted = z.argmax(-1).astype(np.int32)
    targets = predicted if of_predicted else np.array([s.label for s in samples], np.int32)
    chosen = np.take_along_axis(z, targets[:, None], 1)[:, 0]
    chances = np.exp(chosen - np.logaddexp.reduce(z, -1))
    regions = np.stack([to_region(s.boxes, x.shape[1:3]) for s in samples])
    places = np.array(list(inputs), np.int32)
    return Batch(places, samples, x, regions, predicted, targets, chances)


def select(batch: Batch, places: list[int]) -> Batch | None:
    """The part of a batch at some places, or None if there is none."""
    at = np.flatnonzero(np.isin(batch.places, places))
    if not at.size:
        return None
    arrays = {k: v[at] for k, v in batch._asdict().items() if k != "samples"}
    return Batch(samples=[batch.samples[i] for i in at], **arrays)


def rows(batch: Batch, method: str) -> pl.DataFrame:
    """What a row has beside metrics."""
    return pl.DataFrame(
        {
            "method": [method] * len(batch.samples),
            "index": batch.places,
            "image": [sample.name for sample in batch.samples],
            "label": pl.Series([sample.label for sample in batch.samples], dtype=pl.Int32),
            "predicted": batch.predicted,
            "target": batch.targets,
            "probability": batch.chances.astype(np.float32),
            "boxes": pl.Series([len(sample.boxes) for sample in batch.samples], dtype=pl.Int32),
        }
    )


def columns(name: str, value: Any, at: np.ndarray, n: int) -> dict[str, pl.Series]:
    """A metric's values at some of n samples, NaN elsewhere; and its curves, if it has."""
    numbers = np.full(n, np.nan, np.float32)
    if value is not None:
        numbers[at] = value.auc if isinstance(value, Curve) else value
    found = {name: pl.Series(numbers)}
    if isinstance(value, Curve):
        curves = dict(zip(at.tolist(), value.scores.tolist(), strict=True))
        values = [curves.get(i) for i in range(n)]
        found[name + CURVE] = pl.Series(values, dtype=pl.List(pl.Float32))
    return found
