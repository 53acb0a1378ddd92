"""Files of a job: pictures are read, results are kept, and none of them overwrites another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jaxfmi.models.preprocess import to_rgb
from jaxfmi.whole import whole

MANIFEST = "manifest.json"


@dataclass
class Results:
    """What has been written so far, and what failed; ``save`` makes it the manifest."""

    out: Path
    head: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    complete: bool = False

    def save(self) -> None:
        """Write the manifest; there is never half of one."""
        found = {"complete": self.complete, "entries": self.entries, "failures": self.failures}
        with whole(self.out / MANIFEST) as partial:
            partial.write_text(json.dumps(self.head | found, indent=2) + "\n", encoding="utf-8")


def read_picture(path: Path) -> Image.Image:
    """Read a picture, upright and in RGB.

    Raises:
      ValueError: it can't be read, with the decoder's reason.
    """
    try:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # decoders raise whatever they trip over in a broken file
        raise ValueError(f"cannot read '{path}': {str(error) or type(error).__name__}") from error


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """The paths' names without endings, numbered where they are the same: cat, cat-2, cat-3."""
    stems, taken = [], {p.stem.casefold() for p in paths}
    used = set()
    for path in paths:
        stem, number = path.stem, 1
        while stem.casefold() in (used if number == 1 else used | taken):
            number += 1
            stem = f"{path.stem}-{number}"
        used.add(stem.casefold())
        stems.append(stem)
    return stems


def check_paths(images: list[Path], out: Path, overwrite: bool) -> None:
    """Raise a ValueError if a picture is no file, or ``out`` is not to be written to."""
    for path in images:
        if not path.is_file():
            what = "is no picture but a folder" if path.is_dir() else "does not exist"
            raise ValueError(f"'{path}' {what}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; --out takes a folder")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"'{out}' is not empty; --overwrite writes to it all the same")
