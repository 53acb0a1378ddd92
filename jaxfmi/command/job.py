"""Explain picture files: from paths to overlays, raw maps and a manifest that says what they are.

Everything that can be wrong with a command is found by ``plan``, before the first picture is read.
``run`` writes what it has as it goes, so that neither a broken picture nor an interruption loses
the others.
"""

import inspect
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxfmi import log_odds, logit, probability, sise_layers
from jaxfmi.batched import batched
from jaxfmi.command.files import Results, read_picture, unique_stems
from jaxfmi.command.methods import METHODS, Method, build, form, settings
from jaxfmi.command.networks import Network, find_class, layers
from jaxfmi.command.words import pick
from jaxfmi.explainer import Explainer, Score
from jaxfmi.modules import class_score
from jaxfmi.report import lay
from jaxfmi.taps import listing, suggestion

Batched = Callable[..., np.ndarray]
AUTO = "auto"
SCORES = {AUTO: None} | {f.__name__: f for f in (logit, probability, log_odds)}


class Step(NamedTuple):
    """A method at one of its layers, or at all of them: a map for every picture and class."""

    method: str
    layer: str | tuple[str, ...] | None
    options: dict[str, Any]
    make: Callable[[Score], Explainer]


@dataclass
class Job:
    """What to do for every picture; ``targets`` before ``top_k``, the model's best classes."""

    network: Network
    steps: list[Step]
    score: str = AUTO
    targets: tuple[int, ...] = ()
    top_k: int = 1
    batch_size: int = 16
    seed: int = 0


class Picture(NamedTuple):
    """A picture upright and in RGB, and its place among all paths of the command."""

    place: int
    path: Path
    image: Image.Image


def plan(
    network: Network,
    methods: Iterable[str],
    *,
    layer: Sequence[str] = ("auto",),
    options: Iterable[str] = (),
    score: str = AUTO,
    targets: Iterable[str] = (),
    top_k: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    table: Mapping[str, Method] = METHODS,
) -> Job:
    """Turn the words of a command into a job.

    Raises:
      ValueError: an unknown method, layer, option, score or class, each with what there is.
    """
    chosen = [pick("method", name, table) for name in dict.fromkeys(methods)]
    found = settings(chosen, options, table)
    names = _layers(network, layer)
    if list(layer) != ["auto"] and not any(table[n].layered or table[n].fused for n in chosen):
        raise ValueError(f"--layer is for methods that explain a layer; {', '.join(chosen)} do not")
    steps = [
        Step(name, place, found[name], _seeded(build(name, found[name], place, table), seed))
        for name in chosen
        for place in _places(network, table[name], names, layer)
    ]
    classes = tuple(dict.fromkeys(find_class(t, network.classes) for t in targets))
    if not 1 <= top_k <= len(network.classes):
        raise ValueError(
            f"--top-k is 1 to {len(network.classes)}, the model's classes; got {top_k}"
        )
    if not steps:
        raise ValueError("--method and --layer name nothing to do")
    pick("score", score, SCORES)
    return Job(network, steps, score, classes, top_k, batch_size, seed)


def check(job: Job) -> None:
    """Trace every step without computing: what does not fit the network is an error now.

    Raises:
      ValueError: a method can't explain this network or layer, or has an impossible option.
    """
    x = jax.ShapeDtypeStruct((*job.network.preprocess.size, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    for step in job.steps:
        try:
            explain = step.make(class_score(job.network.model, SCORES[job.score]))
            jax.eval_shape(explain, x, number, number)
        except Exception as error:  # an impossible option can fail anywhere in a method
            raise ValueError(f"{step.method}: {error}") from error


def logits(job: Job, size: int, **how) -> Batched:
    """``inputs [N, H, W, 3] -> logits [N, classes]``, ``size`` pictures at a time.

    ``how`` is what else ``batched`` takes.
    """
    return batched(lambda score: score, job.network.model, batch_size=size, of=lambda z: z, **how)


def explainer(job: Job, step: Step, size: int, **how) -> Batched:
    """``(inputs [N, H, W, 3], labels [N], places [N]) -> maps [N, H, W]``, ``size`` at a time.

    A picture's place seeds its noise, so that a map does not depend on the batch around it.
    ``how`` is what else ``batched`` takes.
    """
    return batched(step.make, job.network.model, batch_size=size, of=SCORES[job.score], **how)


def run(
    job: Job,
    paths: Sequence[Path],
    out: Path,
    *,
    command: Sequence[str] = (),
    done: Callable[[int], None] = lambda pictures: None,
    warn: Callable[[str], None] = lambda why: None,
) -> Results:
    """Explain pictures in batches and write to ``out`` what comes, the manifest after each batch.

    Args:
      job: from ``plan``.
      paths: pictures of any kind that PIL reads.
      out: an existing folder.
      command: how this was asked for, for the manifest.
      done: called with a number of pictures that one step has finished.
      warn: called with a line for each picture that can't be read.
    """
    results = Results(out, _head(job, command))
    size = min(job.batch_size, len(paths))
    maps = size * (len(job.targets) or job.top_k)
    classify, explain = logits(job, size), [explainer(job, step, maps) for step in job.steps]
    stems = unique_stems(paths)
    try:
        for start in range(0, len(paths), size):
            pictures = list(_read(enumerate(paths[start : start + size], start), results, warn))
            if pictures:
                _explain(job, pictures, classify, explain, stems, results, done)
            results.save()
        results.complete = True
    finally:
        results.save()
    return results


def _layers(network: Network, wanted: Sequence[str]) -> list[str]:
    there, auto = layers(network.model, network.preprocess.size)
    for name in wanted:
        if name != "auto" and name not in there:
            hint = suggestion(name, there)
            raise ValueError(f"no layer {name!r}{hint}; there are {listing(there)}")
    return list(dict.fromkeys(auto if name == "auto" else name for name in wanted))


def _places(
    network: Network, method: Method, names: list[str], wanted: Sequence[str]
) -> Sequence[str | tuple[str, ...] | None]:
    """What a method is made at: each layer by itself, all of them, or nothing."""
    if method.fused:
        return [tuple(names) if list(wanted) != [AUTO] else fused_layers(network)]
    return names if method.layered else [None]


def fused_layers(network: Network) -> tuple[str, ...]:
    """The layers that ``"auto"`` is for methods that fuse several."""
    x = jnp.zeros((*network.preprocess.size, 3))
    return tuple(sise_layers(class_score(network.model), x, 0))


def _seeded(make: Callable[[Score], Explainer], seed: int) -> Callable[[Score], Explainer]:
    """``(x, label, place) -> map``: noise depends on the picture's place, not on its batch."""

    def method(score):
        explain = make(score)
        if "key" not in inspect.signature(explain).parameters:
            return lambda x, label, place: explain(x, label)
        key = jax.random.key(seed)
        return lambda x, label, place: explain(x, label, key=jax.random.fold_in(key, place))

    return method


def _read(
    numbered: Iterable[tuple[int, Path]], results: Results, warn: Callable[[str], None]
) -> Iterator[Picture]:
    for place, path in numbered:
        try:
            yield Picture(place, path, read_picture(path))
        except ValueError as error:
            results.failures.append({"image": str(path), "why": str(error)})
            warn(str(error))


def _explain(
    job: Job,
    pictures: Sequence[Picture],
    classify: Batched,
    explain: Sequence[Batched],
    stems: Sequence[str],
    results: Results,
    done: Callable[[int], None],
) -> None:
    """Every step for one batch of pictures; each map's files are written before its entry."""
    x = np.stack([job.network.preprocess(picture.image) for picture in pictures])
    z = classify(x)
    best = np.argsort(-z, axis=1, kind="stable")[:, : job.top_k]
    labels = np.array([job.targets] * len(x) if job.targets else best, np.int32)
    places = np.array([picture.place for picture in pictures], np.int32)
    maps = len(labels[0])
    inputs = np.repeat(x, maps, axis=0), labels.ravel(), np.repeat(places, maps)
    for step, explainer in zip(job.steps, explain, strict=True):
        for i, heatmap in enumerate(np.asarray(explainer(*inputs), np.float32)):
            picture, label = pictures[i // maps], int(labels.flat[i])
            entry = _entry(job, step, picture, label, z[i // maps], heatmap)
            name = _file_name(job, step, stems[picture.place], label)
            files = _write(results.out, name, picture, heatmap, step)
            results.entries.append(entry | {"files": files})
        done(len(pictures))


def _file_name(job: Job, step: Step, stem: str, label: int) -> str:
    parts = [stem, str(label), step.method]
    if isinstance(step.layer, str) and len({s.layer for s in job.steps if s.layer}) > 1:
        parts.append(step.layer.replace("/", "-"))
    return ".".join(parts)


def _write(
    out: Path, name: str, picture: Picture, heatmap: np.ndarray, step: Step
) -> dict[str, str]:
    files = {"overlay": f"{name}.png", "map": f"{name}.npy"}
    np.save(out / files["map"], heatmap)
    pixels = np.asarray(picture.image, np.float32) / 255
    shown = lay(pixels, heatmap, METHODS[step.method].signed)
    Image.fromarray((shown * 255).round().astype(np.uint8)).save(out / files["overlay"])
    return files


def _entry(job: Job, step: Step, picture: Picture, label: int, z, heatmap) -> dict[str, Any]:
    kind = form(step.make) if job.score == AUTO else job.score
    value = (SCORES[kind] or logit)(jnp.asarray(z), label)
    return {
        "image": str(picture.path),
        "picture_size": [picture.image.height, picture.image.width],
        "method": step.method,
        "options": step.options,
        "layer": step.layer,
        "target": {"index": label, "name": job.network.classes[label]},
        "score": {"kind": kind, "value": _number(value)},
        "probability": _number(probability(jnp.asarray(z), label)),
        "minimum": _number(heatmap.min()),
        "maximum": _number(heatmap.max()),
    }


def _number(value) -> float | None:
    """A number for JSON, which has none for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def _head(job: Job, command: Sequence[str]) -> dict[str, Any]:
    packages = ("jaxfmi", "jax", "flax", "numpy")
    return {
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
        "command": list(command),
        "model": job.network.card,
        "score": job.score,
        "seed": job.seed,
    }
