"""From a model to a score: the one file that knows of NNX, linen and plain functions.

A model is one of

* a Flax NNX module;
* a pair of a Flax linen module and its variables;
* a pair ``(f, params)`` with ``f(params, x)``;
* a function ``f(x)``;

each taking images [N, H, W, C]. A score needs none of this: any ``(x [H, W, C], *args) -> scalar``
is one, and ``lambda x, label: model(x[None])[0, label]`` is the usual.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, nnx
from flax import linen as nn
from jax.core import Tracer

from jaxfmi.explainer import CHECK, FORM, LOGITS, Score
from jaxfmi.taps import tag

Model = Any


def logit(z: jax.Array, label) -> jax.Array:
    """The class's entry of the logits [classes]; where there is no such class all is NaN."""
    return _known(z, label)[label]


def probability(z: jax.Array, label) -> jax.Array:
    """The class's softmax probability, from logits [classes]. It saturates; logits do not."""
    return logit(jax.nn.softmax(z), label)


def log_odds(z: jax.Array, label) -> jax.Array:
    """log(p / (1 - p)) of the class, from logits [classes]: its logit against all others.

    Raises:
      ValueError: a single class, whose softmax has no odds.
    """
    if z.shape[-1] < 2:
        raise ValueError("log-odds need at least two classes; for one sigmoid take the logit")
    z = _known(z, label)
    others = jnp.where(jnp.arange(z.shape[-1]) == label, -jnp.inf, z)
    return z[label] - jax.nn.logsumexp(others)


def margin(z: jax.Array, label, other) -> jax.Array:
    """The class's logit minus that of another class: why this rather than that."""
    return logit(z, label) - logit(z, other)


def _known(z: jax.Array, label) -> jax.Array:
    """Poison the logits if the label is out of range: their gradients are NaN too, not 0."""
    return z * jnp.where((label >= 0) & (label < z.shape[-1]), 1.0, jnp.nan).astype(z.dtype)


_OF_A_CLASS = (logit, probability, log_odds, margin)


OF = "of"  # attribute of a class score: what it is of


def class_score(model: Model, of: Callable[..., jax.Array] | None = logit) -> Score:
    """Make the score of a class: ``class_score(model)(x [H, W, C], label) -> scalar``.

    Args:
      model: in any form that this file lists.
      of: ``logit``, ``probability``, ``log_odds``, ``margin`` (whose score takes two labels), or
        any ``(output of the model for one image, *args) -> scalar``. None leaves it to the method
        that explains: the logit, unless its docstring asks for another.

    Raises:
      ValueError: the model is in training mode; or, when the score is explained, a label is out of
        range (inside ``jit``, where labels have no value yet, the result is NaN instead).
    """
    if of is None:
        score = class_score(model)
        setattr(score, FORM, lambda of: class_score(model, of))
        return score
    apply, params = functional(model)

    def score(x, *args):
        return of(apply(params, x[None])[0], *args)

    @cache
    def classes(shape, dtype) -> int:
        return jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, *shape), dtype)).shape[-1]

    def check(x, *labels):
        if of not in _OF_A_CLASS:
            return
        for label in labels[: 2 if of is margin else 1]:
            if not isinstance(label, Tracer):  # or there is no value to check: no need to count
                check_labels(label, classes(x.shape, jax.typeof(x).dtype))

    setattr(score, CHECK, check)
    setattr(score, OF, of)
    setattr(score, LOGITS, lambda x: apply(params, x[None])[0])
    return score


def check_labels(labels, classes: int) -> None:
    """Raise a ValueError unless labels (an int or an array, if known) are in [0, classes)."""
    if isinstance(labels, Tracer):
        return
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are integers, got {labels.dtype}")
    if wrong := labels[(labels < 0) | (labels >= classes)].ravel()[:3].tolist():
        raise ValueError(
            f"label {wrong[0]} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )


def functional(model: Model) -> tuple[Callable[[Any, jax.Array], Any], Any]:
    """Split a model into ``apply(params, x [N, H, W, C])`` and its arrays ``params``.

    Raises:
      TypeError: not a model in one of the forms that this file lists.
      ValueError: the model is in training mode.
    """
    if isinstance(model, nnx.Module):
        _check_evaluation(model)
        graph, state = nnx.split(model)
        now = jax.tree.map(lambda a: a, state)  # its own variables: later changes are not seen
        return lambda state, x: nnx.merge(graph, state, copy=True)(x), now
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        module, variables = model
        return lambda variables, x: _apply_linen(module, variables, x), variables
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        return model
    if callable(model) and not isinstance(model, nn.Module):
        return lambda _, x: model(x), ()
    raise TypeError(
        "expected an NNX module, (linen module, variables), (f, params) or f(x); got "
        + ("a linen module without its variables" if callable(model) else repr(type(model)))
    )


def tag_modules(model: Model) -> Model:
    """Tag the output of every submodule with its path, such as ``layer4/1/conv2``.

    For models whose source is not ours. A module that is called again in one call of the model
    gets ``path#2``, ``path#3``, and so on; outputs that are not single arrays stay untagged.

    Args:
      model: an NNX module, which is copied, or a pair of a linen module and its variables.

    Returns:
      A model of the same use: an NNX module, or a pair ``(f, variables)``.
    """
    if isinstance(model, nnx.Module):
        return _tag_nnx(nnx.clone(model))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        module, variables = model

        def apply(variables, x):
            with nn.intercept_methods(_linen_tagger()):
                return _apply_linen(module, variables, x)

        return apply, variables
    raise TypeError(
        f"expected an NNX module or (linen module, variables), got {type(model)}; in a function "
        "of yours, name values with jaxfmi.tag"
    )


def _tag_nnx(model: nnx.Module) -> nnx.Module:
    """Give every submodule a subclass of its own class that tags what it returns."""
    calls: dict[str, int] = {}
    entered: list[str] = []

    def tagged(cls, path):
        def __call__(self, *args, **kwargs):
            if not entered:  # the root, or a part of the model that is called by itself
                calls.clear()
            entered.append(path)
            try:
                out = cls.__call__(self, *args, **kwargs)
            finally:
                entered.pop()
            return _tag_call(out, path, calls)

        return type(cls.__name__, (cls,), {"__call__": __call__, "__module__": cls.__module__})

    for path, module in list(nnx.iter_modules(model)):
        if callable(module):
            object.__setattr__(module, "__class__", tagged(type(module), "/".join(map(str, path))))
    return model


def _linen_tagger():
    calls: dict[str, int] = {}

    def interceptor(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        return _tag_call(out, "/".join(context.module.path), calls)

    return interceptor


def _tag_call(out, path: str, calls: dict[str, int]):
    """Tag what the module at a path returns, counting its calls; the root stays untagged."""
    if not path or not isinstance(out, jax.Array):
        return out
    calls[path] = calls.get(path, 0) + 1
    return tag(out, path if calls[path] == 1 else f"{path}#{calls[path]}")


def _check_evaluation(model: nnx.Module) -> None:
    training = [
        "/".join(map(str, path)) or type(module).__name__
        for path, module in nnx.iter_modules(model)
        if getattr(module, "use_running_average", None) is False
        or getattr(module, "deterministic", None) is False
    ]
    if training:
        raise ValueError(
            f"the model is in training mode ({', '.join(training[:3])}"
            + (f" and {len(training) - 3} more" if len(training) > 3 else "")
            + "); call model.eval() first"
        )


def _apply_linen(module: nn.Module, variables, x):
    try:
        return module.apply(variables, x)
    except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
        raise ValueError(
            f"the linen model is in training mode: {str(error).split(' (http')[0]}; pass a pair "
            "such as (lambda variables, x: module.apply(variables, x, train=False), variables)"
        ) from error
