"""Labelled pictures for networks that embed: from packed files, from Omniglot's, or from arrays."""

import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxfmi.models.preprocess import Preprocess
from jaxfmi.train.data import load_split

__all__ = ["Pictures", "choose", "disjoint", "read", "read_omniglot", "rotations"]


class Pictures(NamedTuple):
    """Pictures uint8 [N, H, W, C] of one size, the index of each one's class, the classes' names.

    `labels` and `names` may be empty where nothing asks for them.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()


def read(path: str | Path, size: int = 0) -> Pictures:
    """Read a packed `.npz` (see `data.load_split`) or a `.zip` of Omniglot's drawings.

    Args:
      path: the file.
      size: side that drawings are resized to (0: 28). Packed pictures stay as they are.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is neither, or something in it is missing.

    """
    path = Path(path)
    if path.suffix == ".zip":
        return read_omniglot(path, size or 28)
    if path.suffix != ".npz":
        raise ValueError(f"pictures come from a packed .npz or from Omniglot's .zip, not '{path}'")
    split = load_split(path)
    return Pictures(split.images, split.labels, split.names)


def read_omniglot(path: str | Path, size: int = 28) -> Pictures:
    """Read drawings `<set>/<alphabet>/<character>/<drawing>.png`: uint8 [N, size, size, 1].

    Ink is 255 and paper 0, resized with antialiasing. A class is a character, called
    `<alphabet>/<character>` (Lake, Salakhutdinov and Tenenbaum, 2015).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such drawing in it.

    """
    with zipfile.ZipFile(path) as archive:
        places = [PurePosixPath(name) for name in sorted(archive.namelist())]
        places = [place for place in places if place.suffix == ".png" and len(place.parts) == 4]
        if not places:
            raise ValueError(f"'{path}' has no drawings <set>/<alphabet>/<character>/<drawing>.png")
        images = np.stack([drawing(archive.read(str(place)), size) for place in places])
    characters = ["/".join(place.parts[1:3]) for place in places]
    names, labels = np.unique(characters, return_inverse=True)
    return Pictures(images, labels.astype(np.int32), tuple(map(str, names)))


def drawing(file: bytes, size: int) -> np.ndarray:
    """One drawing of black ink on white, as uint8 [size, size, 1] with ink 255."""
    ink = Preprocess((size, size), mean=(-1.0,), order="L", scale=-255.0)
    return (255 * ink(Image.open(io.BytesIO(file)))).round().astype(np.uint8)


def choose(pictures: Pictures, classes) -> Pictures:
    """The pictures of some classes, by index, whose labels count from 0 in that order."""
    classes = list(classes)
    if missing := sorted(set(classes) - set(pictures.labels.tolist())):
        there = f"0 to {pictures.labels.max()}" if len(pictures.labels) else "none"
        raise ValueError(f"no pictures of classes {missing}; there are {there}")
    place = np.full(pictures.labels.max() + 1, -1)
    place[classes] = np.arange(len(classes))
    labels = place[pictures.labels].astype(np.int32)
    names = tuple(pictures.names[c] for c in classes) if pictures.names else ()
    return Pictures(pictures.images[labels >= 0], labels[labels >= 0], names)


def disjoint(novel: Pictures, train: Pictures) -> Pictures:
    """`novel` without the classes whose names `train` has too, which are not new.

    Omniglot's two small sets share two alphabets, with the same drawings.
    """
    known = set(train.names)
    return choose(novel, [i for i, name in enumerate(novel.names) if name not in known])


def rotations(pictures: Pictures) -> Pictures:
    """Add the pictures turned by 90, 180 and 270 degrees, as classes of their own."""
    count = int(pictures.labels.max()) + 1
    images = [np.rot90(pictures.images, turn, (1, 2)) for turn in range(4)]
    labels = [pictures.labels + turn * count for turn in range(4)]
    names = [f"{name} turned {90 * turn}" for turn in range(4) for name in pictures.names]
    return Pictures(np.concatenate(images), np.concatenate(labels), tuple(names))
