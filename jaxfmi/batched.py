"""Explain many images: one compilation, padded batches, all devices, progress."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxfmi.explainer import CHECK, Explainer, Score, check_finite
from jaxfmi.modules import Model, class_score, functional

BATCH = PartitionSpec("batch")


def batched(
    method: Callable[[Score], Explainer],
    model: Model,
    *,
    batch_size: int = 32,
    of: Callable[..., jax.Array] | None = None,
    progress: bool = False,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Make an explainer of batches: ``batched(lambda s: grad_cam(s, "stage4"), model)``.

    It compiles once: the weights are arguments of the compiled program, as are labels; the last
    batch is padded. With several devices each gets an equal part of every batch, and the result
    is the same.

    Args:
      method: score -> explainer.
      model: an NNX module, (linen module, variables), (f, params) with ``f(params, x)``, or
        ``f(x)``; as it is now: later changes of its weights are not seen.
      batch_size: images at a time, over all devices; rounded up to a multiple of their number.
      of: the score of a class, as in ``class_score``; None for what the method asks for.
      progress: show a bar.
      devices: to be used; None for all.
      compiler_options: XLA's, as ``jax.jit`` takes them.

    Returns:
      ``(images [N, H, W, C], *args [N, ...], key=None) -> heatmaps [N, H, W]``, a NumPy array (or
      a tree of them, where the explainer returns one). Image i of a random method uses
      ``fold_in(key, i)``, whatever the batch size.

    Raises:
      ValueError: batch_size below 1; when called: no image, another rank than 4, other lengths of
        labels and images, values that are NaN or infinite, a label out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is a number of images, at least 1; got {batch_size}")
    apply, params = functional(model)
    score = class_score(model, of)
    check = getattr(method(score), CHECK, getattr(score, CHECK))
    mesh = Mesh(np.asarray(devices or jax.devices()), ("batch",))
    size = -(-batch_size // mesh.size) * mesh.size

    def explain_part(params, key, index, images, *args):
        explain = method(class_score((apply, params), of))
        if key is None:
            return jax.vmap(explain)(images, *args)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return jax.vmap(lambda k, *a: explain(*a, key=k))(keys, images, *args)

    @partial(jax.jit, compiler_options=dict(compiler_options or {}))
    def explain_batch(params, key, index, images, *args):
        whole = (PartitionSpec(), PartitionSpec())
        part = (BATCH,) * (2 + len(args))
        f = jax.shard_map(
            explain_part, mesh=mesh, in_specs=whole + part, out_specs=BATCH, check_vma=False
        )
        return f(params, key, index, images, *args)

    def explain(images, *args, key=None):
        images, args = _check_batch(images, args)
        check(images[0], *args)
        results = []
        for start in _track(range(0, len(images), size), size, len(images), progress):
            index = np.minimum(np.arange(start, start + size), len(images) - 1)
            batch = explain_batch(params, key, index, images[index], *(a[index] for a in args))
            results.append(batch)
            if len(results) > 1:  # one batch is computed while the one before it is fetched
                results[-2] = jax.device_get(results[-2])
        results[-1] = jax.device_get(results[-1])
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *results)

    return explain


def _check_batch(images, args) -> tuple[np.ndarray, list[np.ndarray]]:
    images, arrays = np.asarray(images), [np.asarray(a) for a in args]
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected images [N, H, W, C], at least one; got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"expected float images, got {images.dtype}; preprocess them")
    check_finite(images, "the batch")
    for a in arrays:
        if a.shape[:1] != images.shape[:1]:
            raise ValueError(f"{len(images)} images, but labels (or arguments) of shape {a.shape}")
    return images, arrays


def _track(starts: range, size: int, total: int, progress: bool):
    """Yield the starts of batches, with a bar that counts images."""
    if not progress:
        yield from starts
        return
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("explaining", total=total)
        for start in starts:
            yield start
            bar.update(task, completed=min(start + size, total))
