"""The command ``jaxfmi compare``: which places of two pictures make a network find them alike."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from flax import nnx
from PIL import Image

from jaxfmi import similarities
from jaxfmi.chunks import looped
from jaxfmi.command import networks
from jaxfmi.command.files import Results, check_paths, read_picture, unique_stems
from jaxfmi.command.networks import Network
from jaxfmi.command.terminal import kept, one_line
from jaxfmi.command.words import pick
from jaxfmi.embeddings import separating_layer
from jaxfmi.panels import overlays, retrieval_panel
from jaxfmi.references import constant_activation
from jaxfmi.similarities import centred_cosine
from jaxfmi.similarity import fam_terms

PANEL, AUTO = "panel.png", "auto"
CENTRED = "centred_cosine"  # from the mean of the pictures that are given
DISTANCE = similarities.neg_squared_distance.__name__
SIMILARITIES = (*(n for n in similarities.NAMED if n != "margin"), CENTRED)
WEIGHTINGS = ("complete", "contribution", "none", "mean")
PACKAGES = ("jaxfmi", "jax", "flax", "numpy")
Words = list[str] | None


def compare(
    context: typer.Context,
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="A picture file.")],
    partners: Annotated[
        list[Path], typer.Argument(metavar="PARTNER...", help="What it is compared with.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A name of `jaxfmi models`, or the folder of a finished run of "
            "`jaxfmi.train.few_shot` or `contrastive`."
        ),
    ] = networks.DEMO,
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .npz file, or owner/name on the hub.")
    ] = None,
    layer: Annotated[
        str, typer.Option(help="A tag of the network, as in `jaxfmi layers`; else the last.")
    ] = AUTO,
    similarity: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(SIMILARITIES)}; the last is from the mean of all pictures given, of "
            "which there must be three."
        ),
    ] = "cosine",
    weighting: Annotated[str, typer.Option(help=", ".join(WEIGHTINGS))] = "complete",
    preprocess: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(networks.PREPROCESS)}; else the model's own."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Input size, 192 or 192x256; else the preprocessing's.")
    ] = None,
    model_option: Annotated[
        Words, typer.Option(help="key=value for the network: padding=SAME; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for maps and panel.")] = Path("jaxfmi-compare"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write to OUT as it is.")] = False,
) -> None:
    """Show which places of QUERY and of each PARTNER make them similar.

    The embedding is the average of the last feature map, what `features` gives. Maps of
    the query are called QUERY.query.PARTNER, those of a partner PARTNER.partner, .png and .npy.
    """
    with one_line():
        check_paths([query, *partners], out, overwrite)
        chosen = weights, model_option or [], preprocess, networks.read_size(size)
        opened = networks.open_run if networks.is_run(model) else networks.open_network
        network = opened(model, *chosen)
        pick("similarity", similarity, SIMILARITIES)
        pick("weighting", weighting, WEIGHTINGS)
        if similarity == CENTRED and len(partners) < 2:
            raise ValueError(f"{CENTRED} needs the mean of at least three pictures: add partners")
        paths = [query, *partners]
        images = [read_picture(file) for file in paths]
        x = np.stack([network.preprocess(image) for image in images])
        found = explain(network, x, layer, similarity, weighting)
        out.mkdir(parents=True, exist_ok=True)
    with kept(f"{out} has what is done"):
        head = {
            "versions": {name: version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            "command": list(context.obj),
            "model": network.card,
            "layer": layer,
            "similarity": similarity,
            "weighting": weighting,
        }
        write(Results(out, head), paths, images, found)
    for file, score in zip(partners, found["scores"], strict=True):
        print(f"{file}: {similarity} {score:.4f}")
    print(out / PANEL)


def explain(
    network: Network, x: np.ndarray, layer: str, similarity: str, weighting: str
) -> dict[str, np.ndarray]:
    """Maps of both sides for the first input against the others, [P, H, W], and [P] scores.

    Raises:
      ValueError: no such layer, one after the features, or an embedding without a cosine.
    """
    graph, state = nnx.split(network.model)

    def embedding(state):
        model: Any = nnx.merge(graph, state)
        return lambda x: model.features(x[None])[0].mean((0, 1))

    @jax.jit
    def embed(state, x):
        return jax.lax.map(embedding(state), x)

    e = embed(state, x)
    last = separating_layer(embedding(state), AUTO, x[0])
    placed = similarity in (CENTRED, DISTANCE) and weighting != "contribution"
    if placed and layer not in (AUTO, last):
        raise ValueError(
            f"{similarity} is explained from embeddings put into the last maps, {last!r}, not into "
            f"{layer!r}: take another similarity, or the weighting contribution"
        )
    centred = similarity == CENTRED
    compared = centred_cosine(np.mean(e, 0)) if centred else similarities.NAMED[similarity]
    what = "that is the mean of all" if centred else "of zeros"
    if (without := np.flatnonzero(similarities.undefined(compared, e))).size:
        raise ValueError(f"picture {without[0] + 1} has an embedding {what}, and so no cosine")

    @jax.jit
    def maps(state, x, e):
        options: dict[str, Any] = {"similarity": similarity}
        if similarity == CENTRED:
            mu = e.mean(0)
            options = {"similarity": centred_cosine(mu)}
            if weighting != "contribution":
                options["reference"] = constant_activation(mu)
        terms = fam_terms(embedding(state), layer, weighting=weighting, **options)
        there = jax.vmap(terms, (None, 0))(x[0], e[1:])
        back = jax.lax.map(looped(lambda y: terms(y, e[0]).heatmap), x[1:])
        return {
            "query": there.heatmap,
            "partner": back,
            "scores": there.score,
            "residuals": there.residual,
        }

    return jax.device_get(maps(state, x, e))


def write(
    results: Results, paths: list[Path], images: list[Image.Image], found: dict[str, np.ndarray]
) -> None:
    """Write overlays, raw maps, the panel and the manifest."""
    stems, pixels = unique_stems(paths), [np.asarray(i, np.float32) / 255 for i in images]
    count = len(paths) - 1
    shown = {
        "query": overlays([pixels[0]] * count, list(found["query"])),
        "partner": overlays(pixels[1:], list(found["partner"])),
    }
    for i, stem in enumerate(stems[1:]):
        names = {"query": f"{stems[0]}.query.{stem}", "partner": f"{stem}.partner"}
        for side, name in names.items():
            np.save(results.out / f"{name}.npy", found[side][i])
            picture = (shown[side][i] * 255).round().astype(np.uint8)
            Image.fromarray(picture).save(results.out / f"{name}.png")
        results.entries.append(
            {
                "query": str(paths[0]),
                "partner": str(paths[1 + i]),
                "score": float(found["scores"][i]),
                "residual": float(found["residuals"][i]),
                "files": {s: {"overlay": f"{n}.png", "map": f"{n}.npy"} for s, n in names.items()},
            }
        )
    order = np.argsort(-found["scores"], kind="stable")
    retrieval_panel(
        pixels[0],
        [pixels[1 + i] for i in order],
        list(found["query"][order]),
        list(found["partner"][order]),
        found["scores"][order].tolist(),
        caption=stems[0],
        labels=[stems[1 + i] for i in order],
        path=results.out / PANEL,
    )
    results.complete = True
    results.save()
