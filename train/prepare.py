"""Write pictures as a data set of tensorflow-datasets, without TensorFlow.

    python -m jaxfmi.train.prepare digits_on_textures --data-dir FOLDER

The files are ArrayRecord, and all features arrays, so that `tfds.builder(...).as_data_source` reads
them back, and `--data FOLDER/<name>/<version>` trains on them. (Features of the kind `Image` would
need TensorFlow to be encoded from arrays.)
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfmi.train.digits import draw_digits
from jaxfmi.train.sources import DIGITS, Data, Split, digits_options, open_source

__all__ = ["main", "prepare"]

VERSION = "1.0.0"


def prepare(
    name: str,
    data: Data,
    data_dir: str | Path,
    masks: Mapping[str, np.ndarray] | None = None,
    note: str = "",
) -> Path:
    """Write splits that are in memory; returns the folder of the data set.

    Args:
      name: of the data set: lower case letters, digits and underscores.
      data: splits by name; features are `image` uint8 [H, W, 3], `label`, and `box` int32 [4]
        (x1, y1, x2, y2 in pixels, both ends included) where a split has boxes.
      data_dir: where data sets are kept.
      masks: for each split, [N, H, W]; they become the feature `mask`, uint8 of 0 and 1.
      note: the description.

    Raises:
      ValueError: a split is not in memory, or the splits differ in size or classes.
    """
    import tensorflow_datasets as tfds

    here = {split: pictures for split, pictures in data.items() if isinstance(pictures, Split)}
    for split in data:
        if split not in here:
            raise ValueError(f"the split {split!r} is not in memory: {type(data[split]).__name__}")
    name_of_first, first = next(iter(here.items()))
    for split, pictures in here.items():
        alike = (
            pictures.names == first.names and pictures.images.shape[1:] == first.images.shape[1:]
        )
        if not alike or (pictures.boxes is None) != (first.boxes is None):
            raise ValueError(
                f"the splits differ in classes, size or boxes: {_described(first)} in "
                f"{name_of_first}, {_described(pictures)} in {split}"
            )
    features = {
        "image": tfds.features.Tensor(shape=first.images.shape[1:], dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=[*first.names]),
    }
    if first.boxes is not None:
        features["box"] = tfds.features.Tensor(shape=(4,), dtype=np.int32)
    if masks is not None:
        features["mask"] = tfds.features.Tensor(shape=first.images.shape[1:3], dtype=np.uint8)

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=note,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in here}

        def _generate_examples(self, split):
            return _examples(here[split], None if masks is None else masks[split])

    Writer.name = name
    Writer.url_infos = {}  # nothing is downloaded, and no list of it looked for
    builder = Writer(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _described(split: Split) -> str:
    boxes = "no boxes" if split.boxes is None else "boxes"
    return f"{', '.join(split.names[:3])} ({len(split.names)}), {split.images.shape[1:]}, {boxes}"


def _examples(pictures: Split, masks: np.ndarray | None) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        example = {"image": image, "label": int(label)}
        if pictures.boxes is not None:
            example["box"] = pictures.boxes[i].astype(np.int32)
        if masks is not None:
            example["mask"] = masks[i].astype(np.uint8)
        yield i, example


def main(words: Sequence[str] | None = None) -> None:
    """Read the words of the command line (None: this process's), and write the data set."""
    parser = argparse.ArgumentParser("python -m jaxfmi.train.prepare", description=__doc__)
    parser.add_argument("data", help="what --data of `jaxfmi train` takes and memory holds")
    parser.add_argument(
        "--name", help="of the data set; else digits_on_textures, or the last part of data"
    )
    parser.add_argument("--data-dir", required=True, help="where data sets are kept")
    given = parser.parse_args(words)
    data, masks, name = open_source(given.data), None, Path(given.data).name
    if (options := digits_options(given.data)) is not None:
        name, how = DIGITS, {k: v for k, v in options.items() if k not in data}
        drawn = {split: draw_digits(len(s.labels), split, **how) for split, s in data.items()}
        masks = {split: d.masks for split, d in drawn.items()}
    print(prepare(given.name or name, data, given.data_dir, masks))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
