"""Data sets: pictures with a class and boxes, read one by one as they are needed.

What is wrong with a list is found when it is opened, and said with the row; a picture that can't be
read is found when its turn comes, and costs only itself.
"""

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from jaxfmi.command.files import read_picture
from jaxfmi.metrics import region
from jaxfmi.models.preprocess import to_rgb

INDEX = "index.csv"
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMS = (
    f"a folder with {INDEX} (file, class_index, boxes), a folder of class folders, or a packed "
    ".npz (blob, offsets, labels)"
)
BACKGROUND = 1001  # outputs of a network that has a class before ImageNet's 1000
SLACK = 1e-6  # of a pixel: 0.28 of 50 pixels is 14, not a hair more

Box = tuple[float, float, float, float]


class Sample(NamedTuple):
    """A picture that is not read yet, its class, and the boxes of its instances."""

    name: str
    label: int
    boxes: tuple[Box, ...]  #: left, top, right, bottom as fractions of width and height
    open: Callable[[], Image.Image]  #: raises ValueError where the picture can't be read


class Data(NamedTuple):
    """Samples in order, and what a table says about them."""

    name: str
    samples: Sequence[Sample]

    @property
    def card(self) -> dict[str, Any]:
        """Name, number, and a digest of names, labels and boxes in their order; not of pixels."""
        rows = [[s.name, s.label, s.boxes] for s in self.samples]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return {"name": self.name, "images": len(rows), "sha256": digest}


def open_data(path: Path, *, every: int = 1, limit: int | None = None) -> Data:
    """List the samples of a data set.

    Args:
      path: one of

        * a folder with ``index.csv``: columns ``file`` (in the folder), ``class_index`` and, if
          there are boxes, ``boxes``: ``x1:y1:x2:y2`` with spaces between boxes. They are fractions
          of the picture's width and height; where there are columns ``w`` and ``h``, pixels;
        * a packed ``.npz``: ``blob`` holds the picture files one after another, ``offsets`` their
          n + 1 bounds, ``labels`` the classes; ``boxes`` [n, 4], if any, are in pixels;
        * a folder of class folders with pictures. Where all names of folders are numbers, these
          are the classes; else a class is the folder's place in alphabetical order.

        Pixels of a box are the first and the last column and row in it, counted from 0.
      every: take every so-manyth sample.
      limit: then, take at most this many.

    Raises:
      ValueError: it is none of these, or broken; no sample; a row without file or with a box that
        is empty or outside of the picture.
      OSError: a file can't be read.
    """
    stop = None if limit is None else every * limit
    if path.is_dir():
        rows = _indexed(path) if (path / INDEX).is_file() else _class_folders(path)
        samples = list(islice(rows, 0, stop, every))
    elif path.suffix == ".npz" and path.is_file():
        samples = list(_packed(path, slice(0, stop, every)))
    else:
        what = "is none of these" if path.exists() else "does not exist"
        raise ValueError(f"'{path}' {what}; data is {FORMS}")
    if not samples:
        raise ValueError(f"'{path}' holds no picture; data is {FORMS}")
    return Data(path.name, samples)


def label_offset(given: int | None, outputs: int) -> int:
    """What is added to a data set's classes: as given, or 1 for 1001 outputs, and else 0.

    1001 are ImageNet's 1000 and a background before them, as TensorFlow's networks have it.
    """
    return given if given is not None else int(outputs == BACKGROUND)


def shift(data: Data, offset: int, outputs: int) -> Data:
    """Add an offset to the labels.

    Raises:
      ValueError: the network has no such class; says which sample.
    """
    samples = [s._replace(label=s.label + offset) for s in data.samples]
    for sample in samples:
        if not 0 <= sample.label < outputs:
            moved = f" (with the offset {offset})" if offset else ""
            raise ValueError(
                f"'{sample.name}' of {data.name} has class {sample.label}{moved}; the network has "
                f"0 to {outputs - 1}; --label-offset moves them"
            )
    return data._replace(samples=samples)


def to_region(boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray:
    """Mark boxes in a picture of (H, W): bool [H, W].

    Every pixel that a box touches counts: left and top are rounded down, right and bottom up.
    """
    height, width = size
    corners = np.reshape(boxes, (-1, 4)) * [width, height, width, height]
    left, top = np.floor(corners[:, :2] + SLACK).T
    right, bottom = np.ceil(corners[:, 2:] - SLACK).T
    return region(np.stack([top, left, bottom, right], 1).astype(int), size)


def _indexed(folder: Path) -> Iterator[Sample]:
    path = folder / INDEX
    with path.open(newline="", encoding="utf-8") as index:
        reader = csv.DictReader(index)
        if missing := {"file", "class_index"} - set(reader.fieldnames or ()):
            raise ValueError(f"'{path}' lacks the column {', '.join(sorted(missing))}")
        for row in reader:
            yield _row(folder, row, f"'{path}', line {reader.line_num}")


def _row(folder: Path, row: dict[str, str], where: str) -> Sample:
    try:
        label = int(row["class_index"])
        size = (int(row["w"]), int(row["h"])) if row.get("w") else None
        boxes = [tuple(map(float, b.split(":"))) for b in (row.get("boxes") or "").split()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not row["file"]:
        raise ValueError(f"{where}: no file")
    read = partial(read_picture, folder / row["file"])
    return Sample(row["file"], label, _fractions(boxes, size, where), read)


def _packed(path: Path, taken: slice) -> Iterator[Sample]:
    arrays = _arrays(path)
    if missing := {"blob", "offsets", "labels"} - set(arrays):
        raise ValueError(f"'{path}' lacks {', '.join(sorted(missing))}; data is {FORMS}")
    blob, offsets, labels = arrays["blob"], arrays["offsets"], arrays["labels"]
    boxes = arrays.get("boxes")
    if len(offsets) != len(labels) + 1 or (boxes is not None and len(boxes) != len(labels)):
        raise ValueError(f"'{path}' has {len(labels)} labels, but other numbers of files or boxes")
    digits = len(str(len(labels)))
    for i in range(len(labels))[taken]:
        name, content = f"{i:0{digits}}", blob[offsets[i] : offsets[i + 1]]
        read = partial(_decode, content, f"{path}, picture {name}")
        found = () if boxes is None else _in_picture(boxes[i], content, f"'{path}', picture {name}")
        yield Sample(name, int(labels[i]), found, read)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return dict(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error


def _decode(content: np.ndarray, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content.tobytes())) as image:
            return to_rgb(image)
    except Exception as error:  # decoders raise whatever they trip over in broken data
        raise ValueError(f"cannot read '{name}': it is no picture, or broken") from error


def _in_picture(box: np.ndarray, content: np.ndarray, where: str) -> tuple[Box, ...]:
    """The box as fractions; none where the picture can't be read, which it says in its turn."""
    try:
        size = _size(content)
    except Exception:  # as in _decode
        return ()
    return _fractions([tuple(box.tolist())], size, where)


def _size(content: np.ndarray) -> tuple[int, int]:
    """Width and height of the upright picture, from its header."""
    with Image.open(io.BytesIO(content.tobytes())) as image:
        lying = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        width, height = image.size
        return (height, width) if lying else (width, height)


def _class_folders(path: Path) -> Iterator[Sample]:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    numbered = all(p.name.isdecimal() for p in folders)
    for place, folder in enumerate(folders):
        label = int(folder.name) if numbered else place
        for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS):
            yield Sample(f"{folder.name}/{file.name}", label, (), partial(read_picture, file))


def _fractions(boxes: Sequence, size: tuple[int, int] | None, where: str) -> tuple[Box, ...]:
    """Boxes as fractions: pixels (size is width and height) are from first to last, both in it."""
    width, height = size or (1, 1)
    found = []
    for box in boxes:
        if len(box) != 4:
            raise ValueError(f"{where}: a box is x1:y1:x2:y2, got {box}")
        x1, y1, x2, y2 = box
        if size:
            x1, y1, x2, y2 = x1 / width, y1 / height, (x2 + 1) / width, (y2 + 1) / height
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            unit = f"pixels of {width}x{height}" if size else "fractions of width and height"
            raise ValueError(
                f"{where}: a box x1:y1:x2:y2 in {unit} is empty or not inside the picture: {box}"
            )
        found.append((x1, y1, x2, y2))
    return tuple(found)
