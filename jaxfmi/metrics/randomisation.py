"""Does a map depend on what the network has learnt? The sanity check by random parameters.

Parameters are made random, layer by layer from the output down, and the maps are compared with
those of the trained network: a map that stays as it was shows the image, not the model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from jaxfmi.chunks import looped
from jaxfmi.explainer import CHECK, Explainer, Score, check_image, check_key
from jaxfmi.metrics.metric import check_heatmap
from jaxfmi.metrics.robustness import Similarity
from jaxfmi.metrics.similarity import spearman, ssim
from jaxfmi.modules import Model, class_score, functional

Draw = Callable[[jax.Array, jax.Array], jax.Array]
"""``(key, parameter) -> random parameter`` of the same shape and type."""

SIMILARITIES: Mapping[str, Similarity] = {"ssim": ssim, "spearman": spearman}


def normal_like(key: jax.Array, w: jax.Array) -> jax.Array:
    """Normal values with the tensor's own mean and standard deviation; a constant tensor stays."""
    noise = jax.random.normal(key, (w.size,))  # flat: with four axes it takes 10 times to compile
    return (w.mean() + w.std() * noise.reshape(w.shape)).astype(w.dtype)


def shuffled(key: jax.Array, w: jax.Array) -> jax.Array:
    """The tensor's own values in random order."""
    return jax.random.permutation(key, w.ravel()).reshape(w.shape)


def parameter_layers(model: Model, x: jax.Array) -> list[str]:
    """Name the layers that hold parameters, from the input to the output.

    A layer is what holds arrays directly: the path to the module of a Flax model
    (``blocks/0/conv1/conv``), the parent of an array in a tree of parameters, or its name up to the
    last dot in a flat one; an array that has no parent is a layer of its own. Layers are in the
    order in which the traced program first brings their parameters together with values that depend
    on the image; those that it never does are left out.

    Parameters are the ``nnx.Param`` of an NNX model, and what is in ``params`` where a model's
    arrays are collections of linen; so statistics of batch normalisation are none. In any other
    tree all arrays of floats are parameters: keep statistics out of it.

    Args:
      model: an NNX module, (linen module, variables), or (f, params).
      x: an image [H, W, C]; only its shape and type count.

    Raises:
      ValueError: the model has no parameters, or uses none on what depends on the image.
    """
    apply, params = functional(model)
    return _in_order(apply, params, check_image(x))


def parameter_randomisation(
    method: Callable[[Score], Explainer],
    model: Model,
    *,
    mode: Literal["cascading", "independent"] = "cascading",
    of: Callable[..., jax.Array] | None = None,
    draw: Draw = normal_like,
    similarities: Mapping[str, Similarity] = SIMILARITIES,
    absolute: bool = False,
) -> Callable[..., dict[str, jax.Array]]:
    """Randomisation of model parameters (Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, 2018).

    The likeness of the trained network's map to that of a network whose L layers are random, each
    in turn, the output's first: cascading, all down to the layer are random; independent, that
    layer alone. Low is good, in the end at least; 1 is a map that does not depend on the model.

    All stages are one compiled program. To have the same random networks for all images, as the
    paper has, give each the same key: ``jax.vmap(lambda x, k: test(x, k, key=key))(images,
    labels)``; keys that differ cost a set of parameters per image.

    Deviations: the paper draws parameters anew as before training, which only the model's author
    can, and also compares HOG features. Quantus compares |map| by default: ``absolute=True``.

    Args:
      method: score -> explainer, as in ``jaxfmi.batched``; one map per image.
      model: an NNX module, (linen module, variables), or (f, params).
      mode: ``"cascading"`` or ``"independent"``.
      of: the score of a class, as in ``class_score``; None for what the method asks for.
      draw: ``normal_like``, ``shuffled``, or any ``(key, w) -> w``.
      similarities: names and functions of two maps.
      absolute: compare absolute values of the maps.

    Returns:
      ``(x [H, W, C], *args, key) -> {name: [L]}``, from the output down: the order of
      ``parameter_layers(model, x)[::-1]``.

    Raises:
      ValueError: another mode; no parameters; no key.
    """
    if mode not in ("cascading", "independent"):
        raise ValueError(f"mode is 'cascading' or 'independent', got {mode!r}")
    apply, params = functional(model)
    check = getattr(class_score(model, of), CHECK)

    def heatmap(params, x, *args):
        found = check_heatmap(method(class_score((apply, params), of))(x, *args))
        return jnp.abs(found) if absolute else found

    @jax.jit
    def compare(params, random, x, *args):
        names = _in_order(apply, params, x)[::-1]
        original = heatmap(params, x, *args)

        def stage(i):
            mixed = _mixed(
                params, random, names, lambda d: d <= i if mode == "cascading" else d == i
            )
            there = heatmap(mixed, x, *args)
            return {name: alike(original, there) for name, alike in similarities.items()}

        return jax.lax.map(looped(stage), jnp.arange(len(names)))

    def test(x, *args, key=None):
        key, x = check_key(key, "parameter_randomisation"), check_image(x)
        check(x, *args)
        return compare(params, redrawn(params, key, draw), x, *args)

    return test


def redrawn(params: Any, key: jax.Array, draw: Draw = normal_like) -> Any:
    """Draw every parameter in a model's arrays anew, the i-th array by ``fold_in(key, i)``.

    Args:
      params: as ``jaxfmi.modules.functional(model)`` gives them; what is no parameter stays.
      key: of all draws.
      draw: ``(key, w) -> w``.
    """
    draw = jax.jit(draw)  # compiled once for all arrays of a shape
    leaves, tree = jax.tree.flatten(params)
    drawn = [
        w if owner is None else draw(jax.random.fold_in(key, i), w)
        for i, (w, owner) in enumerate(zip(leaves, _owners(params), strict=True))
    ]
    return tree.unflatten(drawn)


def _mixed(params, random, names: Sequence[str], is_random: Callable[[int], jax.Array]):
    """Take the arrays of those layers from ``random`` whose place in ``names`` is to be so."""
    leaves, tree = jax.tree.flatten(params)
    mixed = [
        jnp.where(is_random(names.index(owner)), r, w) if owner in names else w
        for w, r, owner in zip(leaves, jax.tree.leaves(random), _owners(params), strict=True)
    ]
    return tree.unflatten(mixed)


def _in_order(apply, params, x) -> list[str]:
    """Name the layers of parameters in the order of their first use."""
    owners = _owners(params)
    if not any(owners):
        raise ValueError(
            "this model has no parameters to be made random; give an NNX module, (linen module, "
            "variables) or (f, params) instead of a function of x alone"
        )
    closed = jax.make_jaxpr(apply)(params, x[None])
    used: dict[int, None] = {}
    _walk(closed.jaxpr, [*({i} for i in range(len(owners))), None], used)
    names = dict.fromkeys(owner for i in used if (owner := owners[i]))
    if not names:
        raise ValueError("none of the model's parameters meets a value that depends on the image")
    return list(names)


def _walk(jaxpr, inputs: list[set[int] | None], used: dict[int, None]) -> list[set[int] | None]:
    """Follow parameters through a program; note in ``used`` the first meeting of each.

    A value is the set of the parameters that it is made of, or None if it depends on the image.
    """
    env = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v) -> set[int] | None:
        return set() if isinstance(v, core.Literal) else env.get(v, set())

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if inner := _inside(eqn):
            outs = _walk(inner, operands, used)
        elif None in operands:
            used |= dict.fromkeys(i for made_of in operands for i in sorted(made_of or ()))
            outs = [None] * len(eqn.outvars)
        else:
            outs = [set().union(*filter(None, operands))] * len(eqn.outvars)
        env |= zip(eqn.outvars, outs, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _inside(eqn):
    """Give the program that an operation (``jit``, ``remat``, a custom rule) calls once, if any."""
    inner = [getattr(j, "jaxpr", j) for j in core.jaxprs_in_params(eqn.params)]
    if len(inner) != 1 or eqn.primitive.name in ("scan", "while"):
        return None
    same = len(inner[0].invars) == len(eqn.invars) and len(inner[0].outvars) == len(eqn.outvars)
    return inner[0] if same else None


def _owners(params) -> list[str | None]:
    """Name the layer that holds each of a model's arrays; None for what is no parameter."""
    flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_variable)[0]
    linen = isinstance(params, Mapping) and "params" in params

    def owner(path, value) -> str | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        floats = jnp.issubdtype(jnp.asarray(jax.tree.leaves(value)[0]).dtype, jnp.floating)
        if _is_variable(value):
            trained = isinstance(value, nnx.Param)
        else:
            trained = name.startswith("params/") or not linen
            name = name.removeprefix("params/") if linen else name
        parent = name[: max(name.rfind("/"), name.rfind("."), 0)]
        return (parent or name) if trained and floats else None

    return [owner(*each) for each in flat]


def _is_variable(value) -> bool:
    return isinstance(value, nnx.Variable)
