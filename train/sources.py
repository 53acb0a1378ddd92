"""Where pictures come from: packed files, folders, tensorflow-datasets, digits on textures."""

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from jaxfmi.models.preprocess import to_rgb

__all__ = ["Data", "Records", "Split", "check_labels", "hold_out", "load_split", "open_source"]

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MEMORY = 2 << 30  #: bytes of decoded pictures of one split that are kept; larger ones are read anew
SPLITS = {"val": ("val", "validation", "valid"), "test": ("test",)}
DIGITS = "digits_on_textures"  #: also with options: digits_on_textures(size=32,classes=2)
FORMS = (
    "a path before _train.npz, a folder with train and val or test (of class folders), "
    f"{DIGITS}, or a data set of tensorflow-datasets"
)


class Split(NamedTuple):
    """Pictures uint8 [N, H, W, 3] of one size, labels [N], boxes [N, 4] or None, class names."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None
    names: tuple[str, ...]
    wnids: tuple[str, ...]


class Records(NamedTuple):
    """Pictures that are read when they are needed, of any size."""

    read: Callable[[int], tuple[np.ndarray, int]]  #: index -> (uint8 [H, W, 3], label)
    length: int
    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()
    labels: np.ndarray | None = None  #: [length], where they are known without reading


Data = Mapping[str, Split | Records]


def open_source(name: str, data_dir: str = "") -> dict[str, Any]:
    """Open a data set: its splits by name, `train` and any of `val` and `test`.

    Raises:
      FileNotFoundError: there is nothing of that name, or it is not prepared; says how to.
      ValueError: it is broken.
      ImportError: it needs a package that is absent.
    """
    path = Path(name)
    if (found := Path(f"{name}_train.npz")).is_file():
        others = {k: Path(f"{name}_{k}.npz") for k in SPLITS}
        return {"train": load_split(found)} | {
            k: load_split(p) for k, p in others.items() if p.is_file()
        }
    if (options := digits_options(name)) is not None:
        return _digits(options)
    if path.is_dir() and (path / "train").is_dir():
        return _folders(path)
    if path.is_dir() or (re.fullmatch(r"[a-z]\w*([/:][\w.:-]+)?", name) and not path.exists()):
        return _prepared(name, path, data_dir)
    raise FileNotFoundError(f"no data at '{name}' (no {found}): --data takes {FORMS}")


def load_split(path: str | Path) -> Split:
    """Read a packed `.npz`: `blob` holds encoded pictures, `offsets` [N + 1] their boundaries.

    `labels` [N] and `names` come with them; `wnids` and `boxes` [N, 4] (x1, y1, x2, y2 in pixels,
    both ends included) may.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file can't be read, an entry is missing, a picture is broken, pictures have
        mixed sizes, there are more or fewer labels than pictures, or a label is of no class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no packed pictures at {path}: --data takes the part of the path before _train.npz"
        )
    try:
        with path.open("rb") as file, np.load(file) as packed:
            entries = dict(packed)
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: it is no .npz, or cut short ({error})") from error
    missing = [name for name in ("blob", "offsets", "labels", "names") if name not in entries]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it has {sorted(entries)}")
    blob, cuts = entries["blob"].tobytes(), entries["offsets"]
    images = [_unpack(path, i, blob[a:b]) for i, (a, b) in enumerate(pairwise(cuts))]
    names, wnids = (tuple(map(str, entries.get(k, ()))) for k in ("names", "wnids"))
    labels = entries["labels"].astype(np.int32)
    return _split(str(path), images, labels, names, wnids, entries.get("boxes"))


def hold_out(data: Data, per_class: int, seed: int) -> dict[str, Any]:
    """Take `per_class` pictures of each class out of `train`, by chance, as `val`.

    The data's own `val` becomes `test`, unless there is one. Where labels are not known without
    reading, `per_class` times the number of classes are taken, whatever their classes.

    Raises:
      ValueError: a class has no more pictures than that.
    """
    train, rng = data["train"], np.random.default_rng((seed, 1))
    n = len(train.labels) if isinstance(train, Split) else train.length
    classes = np.zeros(n, int) if train.labels is None else train.labels
    wanted = per_class * len(train.names) if train.labels is None else per_class
    order = rng.permutation(n)
    groups = [order[classes[order] == label] for label in np.unique(classes)]
    if (fewest := min(map(len, groups))) <= wanted:
        raise ValueError(f"cannot hold out {wanted} pictures of a class of {fewest}")
    held = np.sort(np.concatenate([group[:wanted] for group in groups]))
    kept = np.setdiff1d(np.arange(n), held)
    rest = {"test": data.get("test", data.get("val"))}
    rest = {k: split for k, split in rest.items() if split is not None}
    return {"train": _take(train, kept), "val": _take(train, held)} | rest


def _take(split: Split | Records, indices: np.ndarray) -> Split | Records:
    if isinstance(split, Split):
        boxes = None if split.boxes is None else split.boxes[indices]
        arrays = {"images": split.images[indices], "labels": split.labels[indices]}
        return split._replace(**arrays, boxes=boxes)
    labels = None if split.labels is None else split.labels[indices]
    read = partial(_read_among, split.read, indices)
    return split._replace(read=read, length=len(indices), labels=labels)


def _read_among(read, indices, index):
    return read(int(indices[index]))


def _split(where: str, images: Sequence[np.ndarray], labels, names, wnids=(), boxes=None) -> Split:
    """A split in memory, checked: one size, and every label that of a class."""
    if not len(images):
        raise ValueError(f"{where} holds no picture")
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise ValueError(f"{where} has pictures of mixed sizes, such as {sizes[0]} and {sizes[-1]}")
    labels = np.asarray(labels, np.int32)
    if len(labels) != len(images):
        raise ValueError(f"{where} has {len(images)} pictures and {len(labels)} labels")
    check_labels(labels, names, where)
    return Split(np.stack(images), labels, boxes, tuple(names), tuple(wnids))


def check_labels(labels: np.ndarray, names: Sequence[str], where: str) -> None:
    """Raise ValueError where a label is that of no class."""
    wrong = labels[(labels < 0) | (labels >= len(names))]
    if len(wrong):
        raise ValueError(
            f"{where} has the label {wrong[0]}; there are {len(names)} classes, 0 to "
            f"{len(names) - 1}"
        )


def _unpack(path: Path, index: int, encoded: bytes) -> np.ndarray:
    try:
        return _decode(io.BytesIO(encoded))
    except OSError as error:
        raise ValueError(f"picture {index} of {path} is none, or broken") from error


def _decode(file: Any) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(to_rgb(image))


def digits_options(name: str) -> dict[str, int] | None:
    """The options of digits on textures, such as `size=32,classes=2`; None for other data.

    Raises:
      ValueError: an option is no whole number.
    """
    if not (drawn := re.fullmatch(rf"{DIGITS}(\((.*)\))?", name)):
        return None
    words = [word.partition("=") for word in (drawn[2] or "").split(",") if word.strip()]
    return {key.strip(): int(value) for key, _, value in words}


def _digits(options: dict[str, int]) -> dict[str, Any]:
    """Draw them."""
    from jaxfmi.train.digits import digits_on_textures

    try:
        return dict(digits_on_textures(**options))
    except TypeError as error:
        raise ValueError(f"{DIGITS} can't be drawn with {options}: {error}") from error


def _folders(path: Path) -> dict[str, Any]:
    """Class folders in `train` and beside it; a class's number is its place in the alphabet."""
    names = tuple(sorted(p.name for p in (path / "train").iterdir() if p.is_dir()))
    found = {"train": path / "train"}
    for split, spellings in SPLITS.items():
        for name in spellings:
            if (path / name).is_dir():
                found[split] = path / name
    return {split: _folder(folder, names) for split, folder in found.items()}


def _folder(folder: Path, names: tuple[str, ...]) -> Records:
    if unknown := sorted({p.name for p in folder.iterdir() if p.is_dir()} - {*names}):
        raise ValueError(f"'{folder}' has the class {unknown[0]!r}, of which 'train' has none")
    files = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).glob("*"))
        if file.suffix.lower() in ENDINGS
    ]
    if not files:
        raise ValueError(f"'{folder}' holds no class folders with pictures ({sorted(ENDINGS)})")
    labels = np.array([label for _, label in files], np.int32)
    return Records(partial(_read_file, files), len(files), names, labels=labels)


def _read_file(files: Sequence[tuple[Path, int]], index: int) -> tuple[np.ndarray, int]:
    path, label = files[index]
    try:
        return _decode(path), label
    except OSError as error:
        raise ValueError(f"cannot read '{path}': it is no picture, or broken") from error


def _prepared(name: str, path: Path, data_dir: str) -> dict[str, Any]:
    """A prepared data set of tensorflow-datasets, by name or by its folder; without TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        hint = 'pip install "jaxfmi[train]"'
        raise ImportError(
            f"no data at '{name}'; if it is a data set of tensorflow-datasets: {hint}"
        ) from error
    builder = _builder(tfds, name, path, data_dir)
    sources: dict[str, Any] = {"train": _records(builder, "train")}
    for split, spellings in SPLITS.items():
        for spelling in spellings:
            held = _records(builder, spelling) if spelling in builder.info.splits else None
            if held is not None:
                sources[split] = held
    return sources


def _builder(tfds: Any, name: str, path: Path, data_dir: str) -> Any:
    """The builder, sure to be prepared in a format that can be read at random."""
    if path.is_dir():
        try:
            builder = tfds.builder_from_directory(path)
        except Exception as error:
            raise FileNotFoundError(
                f"no data in the folder '{name}': --data takes {FORMS}"
            ) from error
    else:
        try:
            builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
        except tfds.core.DatasetNotFoundError as error:
            raise FileNotFoundError(f"no data set '{name}': --data takes {FORMS}") from error
    where, prepared = builder.data_path, "train" in builder.info.splits
    if not prepared or builder.info.file_format.value != "array_record":
        manual = " --manual_dir=FOLDER" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
        place = f" --data_dir={data_dir}" if data_dir else ""
        state = "is there, but not as array_record" if prepared else "is not prepared"
        raise FileNotFoundError(
            f"{name} {state} in {where}: `tfds build {name} --file_format=array_record{place}"
            f"{manual}` prepares it (only this needs TensorFlow: pip install tensorflow)"
        )
    return builder


def _records(builder: Any, split: str) -> Split | Records | None:
    """A split, in memory where its pictures have one size and are not too many.

    None for one without labels, such as ImageNet's test split.
    """
    features, keys = builder.info.features, builder.info.supervised_keys or ("image", "label")
    for key in keys:
        if key not in features:
            raise ValueError(f"{builder.name} has no {key!r}, but {[*features]}")
    if not hasattr(features[keys[1]], "names"):
        raise ValueError(f"{builder.name} has {keys[1]!r}, but no names of classes for it")
    source, names = builder.as_data_source(split=split), tuple(features[keys[1]].names)
    read = partial(_read_record, source, *keys)
    if split != "train" and len(source) and read(0)[1] < 0:
        return None
    shape = features[keys[0]].shape
    if None in shape or len(source) * np.prod(shape) > MEMORY:
        return Records(read, len(source), names)
    pairs = [read(index) for index in range(len(source))]
    images, labels = zip(*pairs, strict=True)
    boxes = np.stack([record["box"] for record in source]) if "box" in features else None
    return _split(f"{builder.name}/{split}", images, labels, names, boxes=boxes)


def _read_record(source: Any, image: str, label: str, index: int) -> tuple[np.ndarray, int]:
    record = source[index]
    pixels = record[image]
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, -1)
    return pixels, int(record[label])
