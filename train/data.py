"""Pictures for training, and the order in which batches of them come."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxfmi.train.augment import augment, centre_crop, normalise, random_crop
from jaxfmi.train.config import Config
from jaxfmi.train.sources import (
    Data,
    Records,
    Split,
    check_labels,
    hold_out,
    load_split,
    open_source,
)

__all__ = ["Batch", "Data", "Records", "Split", "augment", "batches", "load_data", "load_split"]
__all__ += ["boxes_of", "check_splits", "first", "normalise", "spaced", "sweep"]


class Batch(NamedTuple):
    """Pictures uint8 [N, H, W, 3], labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


def load_data(config: Config) -> Data:
    """Open what `config.data` names: the splits by name, `train` and `val` or `test` or both.

    Raises:
      FileNotFoundError: there is nothing of that name.
      ValueError: it is broken, or a split that `config` needs is missing.
      ImportError: it needs a package that is absent.
    """
    data = open_source(config.data, config.data_dir)
    if config.hold_out:
        data = hold_out(data, config.hold_out, config.seed)
    check_splits(data, config)
    return data


def check_splits(data: Data, config: Config) -> None:
    """Raise ValueError where there is nothing to validate on, or not what weights are chosen on."""
    if not {"val", "test"} & set(data):
        raise ValueError(
            f"{config.data} has {[*data]} only: --hold-out N validates on a part of it"
        )
    if config.select != "last" and config.select not in data:
        raise ValueError(
            f"--select {config.select}, but {config.data} has {[*data]}: --hold-out N takes val "
            "from the training split"
        )


def batches(split: Split | Records, config: Config, start: int = 0) -> Iterator[Batch]:
    """Batches for training, from step `start` on, in an order that follows from the seed.

    Every epoch has another order, and leaves out the rest that fills no batch.

    Raises:
      ValueError: the split has fewer pictures than a batch, or (with the first batch) pictures
        have other sizes, or labels are not those of classes.
    """
    import grain

    n, size = count(split), config.batch_size
    steps_in_epoch(split, config)
    read = partial(_random, partial(_read, split), config.size, config.min_scale, config.stretch)
    indices = grain.MapDataset.range(n).seed(config.seed).shuffle().batch(size, drop_remainder=True)
    dataset = indices.repeat(config.epochs).random_map(read).slice(slice(start, None))
    return _iterate(dataset, config.workers)


def sweep(split: Split | Records, config: Config, limit: int | None = None) -> Iterator[Batch]:
    """All pictures once, in order; the last batch repeats its last picture to be a whole one.

    `limit` is for so many pictures only, those that `spaced` gives.
    """
    import grain

    read = partial(_whole, partial(_read, split), config.size, config.batch_size)
    indices = grain.MapDataset.source(spaced(count(split), limit).tolist())
    return _iterate(indices.batch(config.batch_size).map(read), config.workers)


def first(split: Split | Records, config: Config) -> np.ndarray:
    """The first picture [1, H, W, 3] as it is read; no process is started for it."""
    return next(sweep(split, replace(config, workers=0), 1)).images[:1]


def spaced(count: int, limit: int | None = None) -> np.ndarray:
    """Indices of so many pictures, evenly spaced; of all where there are no more.

    Folders are in the order of their classes: the first pictures of all are of the first class.
    """
    return np.arange(few := min(count, limit or count)) * count // few


def count(split: Split | Records) -> int:
    """The number of pictures."""
    return len(split.labels) if isinstance(split, Split) else split.length


def boxes_of(split: Split | Records, size: int) -> np.ndarray | None:
    """The boxes [N, 4] of pictures as they are read; None for none, or where `size` cuts them."""
    return split.boxes if isinstance(split, Split) and not size else None


def steps_in_epoch(split: Split | Records, config: Config) -> int:
    """The number of whole batches. Raises ValueError where there is none."""
    if not (steps := count(split) // config.batch_size):
        raise ValueError(
            f"{count(split)} pictures to train on fill no batch of {config.batch_size}"
        )
    return steps


def _iterate(dataset, workers: int) -> Iterator[Batch]:
    """Read ahead: two batches by a thread of this process, or by worker processes.

    The order, and what is drawn at random, do not depend on the number of workers.
    """
    import grain
    from absl import flags

    iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read one of absl's flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_leave_interrupts)
    return (Batch(*pair) for pair in iterable)


def _leave_interrupts(worker: int, workers: int) -> None:
    """An interrupt of the terminal is for the process that trains, which saves before it leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _random(read, size, min_scale, stretch, indices, rng) -> tuple[np.ndarray, np.ndarray]:
    """A batch to train on: where `size` is given, a random crop of every picture."""
    crop = partial(random_crop, size=size, min_scale=min_scale, stretch=stretch)
    return read(indices, (lambda image: crop(rng, image)) if size else None)


def _whole(read, size, length, indices) -> tuple[np.ndarray, np.ndarray]:
    """A batch to evaluate on: where `size` is given, the middle of every picture."""
    padded = np.concatenate([indices, np.repeat(indices[-1:], length - len(indices))])
    return read(padded, partial(centre_crop, size=size) if size else None)


def _read(
    split: Split | Records,
    indices: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, H, W, 3] and labels [n], each picture through `change`."""
    if isinstance(split, Split):
        images, labels = split.images[indices], split.labels[indices]
        return (np.stack([*map(change, images)]) if change else images), labels
    pairs = [split.read(int(index)) for index in indices]
    images = [change(image) if change else image for image, _ in pairs]
    labels = np.array([label for _, label in pairs], np.int32)
    _check(images, labels, split.names)
    return np.stack(images), labels


def _check(images: Sequence[np.ndarray], labels: np.ndarray, names: Sequence[str]) -> None:
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures have mixed sizes, such as {sizes[0]} and {sizes[-1]} (height, width): "
            "--size N brings them to one"
        )
    check_labels(labels, names, "a batch")
