"""Look inside a JAX function: capture, edit and re-rule the values it computes.

One small jaxpr interpreter, ``rewrite``, seen from three sides:

* ``capture(f, "stage4")``        also returns the value tagged ``"stage4"``;
* ``edit(f, {"stage4": fn})``     passes that value through ``fn`` on its way;
* ``rewrite(f, rule)``            replaces operations, e.g. every ReLU.

A tag is ``jax.ad_checkpoint.checkpoint_name``: an identity that carries a name through ``jit``,
``vmap`` and ``grad``. Any JAX function can use it; nothing in this file knows about Flax.
"""

import difflib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.extend import core, source_info_util
from jax.interpreters.partial_eval import dce_jaxpr

#: Returned by a rule: open this function (a ``custom_jvp``, say) and offer what is inside it.
INSIDE = object()

REMAT = ("checkpoint", "remat", "remat2")
_OPENED = ("jit", "pjit", "closed_call", *REMAT)
_FUNCTIONS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


class Op(NamedTuple):
    """One operation of a traced function: a primitive, or a named function such as ``relu``."""

    name: str  #: the primitive's name, or the function's: "conv_general_dilated", "relu", ...
    primitive: str  #: always the primitive's name: "custom_jvp_call" for relu
    tag: str | None  #: the name, if this operation is a tag
    dynamic: tuple[bool, ...]  #: which operands depend on the arguments of the traced function
    params: Mapping[str, Any]
    bind: Callable[..., Any]
    where: str  #: the line it comes from, such as ``/home/me/net.py:12:4 (MyNet.__call__)``
    foreign: bool = False  #: a function of neither JAX's nor this library's: anyone's ``relu``
    dtypes: tuple[Any, ...] = ()  #: of the operands, as the traced function has them
    narrow: bool = False  #: whether an operand or an output is a float of less than 32 bits
    #: Of a function: ``inside(rule, *operands) -> list of outputs``, without its own derivative.
    inside: Callable[..., Any] | None = None

    @property
    def kind(self) -> str:
        """The name, where it says what is computed; else the primitive's."""
        return self.primitive if self.foreign else self.name

    @property
    def opened(self) -> bool:
        """Whether it is a mere wrapper, ``jit`` or ``remat``, whose inside is offered next."""
        return self.primitive in _OPENED

    def __call__(self, *operands):
        """Compute the operation itself."""
        return self.bind(*operands)


Rule = Callable[..., Any]
"""``rule(op, *operands) -> output``, ``NotImplemented`` to leave the operation, or ``INSIDE``."""


def tag(value: jax.Array, name: str) -> jax.Array:
    """Name an activation; the value is unchanged.

    Args:
      value: an array of any shape.
      name: unique within one call of the function that is explained.
    """
    return checkpoint_name(value, name)


def rewrite(f: Callable[..., Any], rule: Rule, live: bool = False) -> Callable[..., Any]:
    """Make ``f`` with every operation first offered to ``rule(op, *operands)``.

    With ``live`` what the output does not need is left out.

    The rule returns the operation's output (a list if it has several), ``NotImplemented`` to leave
    it as it is, or ``INSIDE`` to have a ``custom_jvp`` or ``custom_vjp`` function opened, which
    drops its custom derivative. ``jit`` and ``remat`` are opened unless the rule replaces them;
    loops and branches (``scan``, ``while``, ``cond``) are single operations.

    A rule may hand values of its own type to later operations; then it has to answer for every
    operation that meets one.
    """

    @functools.wraps(f)
    def rewritten(*args):
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        leaves, jaxpr = jax.tree.leaves(args), closed.jaxpr
        if live:
            jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
        outs, _ = _run(jaxpr, closed.consts, leaves, [True] * len(leaves), rule)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return rewritten


def capture(f: Callable[..., Any], *names: str) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Make ``f`` also return tagged values: ``capture(f, *names)(x) -> f(x), {name: value}``.

    Raises:
      ValueError: a name occurs more than once, is not there, or is inside a loop.
    """

    @functools.wraps(f)
    def captured(*args):
        found = {}

        def rule(op, *operands):
            if op.tag in names:
                if op.tag in found:
                    raise ValueError(f"tag {op.tag!r} occurs more than once")
                found[op.tag] = operands[0]
            return NotImplemented

        out = rewrite(f, rule)(*args)
        for name in names:
            if name not in found:
                raise ValueError(_missing(name, f, args))
        return out, found

    return captured


def edit(
    f: Callable[..., Any], edits: Mapping[str, Callable[[jax.Array], jax.Array]]
) -> Callable[..., Any]:
    """Make ``f`` with the value of each tag ``n`` in ``edits`` replaced by ``edits[n](value)``.

    The new value keeps its tag, so that edits and captures compose, and takes the dtype of the old
    one. Under ``jit``, what only led to a value that is replaced is not computed.

    Raises:
      ValueError: a name occurs more than once, is not there, or is inside a loop; or its new value
        has another shape.
    """

    @functools.wraps(f)
    def edited(*args):
        met = set()

        def rule(op, *operands):
            if op.tag not in edits:
                return NotImplemented
            if op.tag in met:
                raise ValueError(f"tag {op.tag!r} occurs more than once")
            met.add(op.tag)
            old, new = operands[0], jnp.asarray(edits[op.tag](operands[0]))
            if new.shape != old.shape:
                raise ValueError(f"tag {op.tag!r} has shape {old.shape}, its new value {new.shape}")
            return op(new.astype(old.dtype))

        out = rewrite(f, rule)(*args)
        for name in edits:
            if name not in met:
                raise ValueError(_missing(name, f, args))
        return out

    return edited


def tags(f: Callable[..., Any], *args) -> dict[str, tuple[int, ...]]:
    """List the tags that ``f(*args)`` meets, in order, with their shapes; nothing is computed."""
    found = {}

    def rule(op, *operands):
        if op.tag:
            found[op.tag] = operands[0].shape
        return NotImplemented

    jax.eval_shape(rewrite(f, rule), *args)
    return found


def depends(f: Callable[..., Any], *args, cut: Iterable[str] = ()) -> bool:
    """Whether ``f(*args)`` depends on its first argument in any way but through the tags ``cut``.

    Decided from the traced program, so a way that happens to carry zeros counts.
    """
    first, *others = args
    closed = jax.make_jaxpr(lambda x: f(x, *others))(first)

    def reach(*leaves):
        every = [True] * len(leaves)
        outs, dynamic = _run(closed.jaxpr, closed.consts, leaves, every, _leave, frozenset(cut))
        found.extend(dynamic)
        return outs

    found: list[bool] = []
    jax.eval_shape(reach, *jax.tree.leaves(first))
    return any(found)


def _leave(op, *operands):
    return NotImplemented


def _run(jaxpr, consts, args, dynamic, rule, cut=frozenset(), where="a line that is not known"):
    """Evaluate a jaxpr through a rule; ``dynamic`` ends at the tags in ``cut``.

    ``where`` is said of operations that do not know their line.
    """
    env = dict(zip(jaxpr.constvars, ((c, False) for c in consts), strict=True))
    env |= zip(jaxpr.invars, zip(args, dynamic, strict=True), strict=True)

    def read(v):
        return (v.val, False) if isinstance(v, core.Literal) else env[v]

    for eqn in jaxpr.eqns:
        operands, dyn = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
        op = _op(eqn, dyn, where)
        out = rule(op, *operands)
        if out is INSIDE or (out is NotImplemented and op.opened):
            outs, dyns = _run(*_body(eqn), operands, dyn, rule, cut, op.where)
        else:
            out = _compute(op, eqn, operands) if out is NotImplemented else out
            outs = out if isinstance(out, list | tuple) and not hasattr(out, "_fields") else [out]
            dyns = [any(dyn) and op.tag not in cut] * len(outs)
        env |= zip(eqn.outvars, zip(outs, dyns, strict=True), strict=True)
    results = [read(v) for v in jaxpr.outvars]
    return [out for out, _ in results], [dyn for _, dyn in results]


def _compute(op: Op, eqn, operands):
    """Compute an operation; constant scalars now, so that rules can read them under ``jit`` too."""
    scalar = eqn.outvars and all(getattr(v.aval, "size", 0) == 1 for v in eqn.outvars)
    if not scalar or any(op.dynamic) or any(isinstance(v, Tracer) for v in operands):
        return op(*operands)
    with jax.ensure_compile_time_eval():
        return op(*operands)


def _body(eqn):
    """The jaxpr inside a function call, and its constants."""
    inner = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def _op(eqn, dynamic, where: str) -> Op:
    primitive = eqn.primitive.name
    name, foreign = primitive, False
    if primitive in _FUNCTIONS:
        about = _body(eqn)[0].debug_info
        name = eqn.params["name"] if primitive in ("jit", "pjit") else about.func_name
        foreign = not about.func_src_info.partition(" at ")[2].startswith(_known_places())

    def bind(*operands, **changed):
        params = eqn.primitive.get_bind_params(eqn.params | changed)
        with eqn.ctx.manager:
            return eqn.primitive.bind(*operands, **params)

    def inside(rule, *operands):
        return _run(*_body(eqn), operands, dynamic, rule, where=where)[0]

    where = source_info_util.summarize(eqn.source_info) or where
    return Op(
        name,
        primitive,
        eqn.params["name"] if primitive == "name" else None,
        tuple(dynamic),
        eqn.params,
        bind,
        where,
        foreign,
        tuple(getattr(v.aval, "dtype", None) for v in eqn.invars),
        any(map(_is_narrow, (*eqn.invars, *eqn.outvars))),
        inside if primitive in _FUNCTIONS or primitive in _OPENED else None,
    )


def _is_narrow(v) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


@functools.cache
def _known_places() -> tuple[str, ...]:
    """The folders of JAX and of this library, whose functions' names can be trusted."""
    specs = map(importlib.util.find_spec, ("jax", "jaxfmi", "jaxfmi.models"))
    return tuple(str(Path(s.origin).parent) + os.sep for s in specs if s and s.origin)


def _missing(name: str, f, args) -> str:
    """Say why there is no tag ``name`` in ``f(*args)``, and which tags there are."""
    for hidden, where in _hidden(jax.make_jaxpr(f)(*args).jaxpr):
        if hidden == name:
            return (
                f"tag {name!r} is inside a {where}, where single values cannot be reached; "
                "unroll the loop, or tag a value outside it"
            )
    return f"no tag {name!r}{suggestion(name, tags(f, *args))}; {inventory(f, *args)}"


def inventory(f, *args) -> str:
    """Say which tags ``f(*args)`` has, which of them are out of reach, or how to get some."""
    found, hidden = tags(f, *args), dict(_hidden(jax.make_jaxpr(f)(*args).jaxpr))
    inside = ", ".join(f"{name!r} (inside a {where})" for name, where in hidden.items())
    if found:
        return f"there are {listing(found)}" + (f"; out of reach are {inside}" if hidden else "")
    if hidden:
        return f"all tags are out of reach: {inside}; unroll the loop, or tag a value outside it"
    return (
        "this function has no tags; name its activations with jaxfmi.tag, or let "
        "jaxfmi.tag_modules name the outputs of its modules"
    )


def _hidden(jaxpr, where="") -> Iterator[tuple[str, str]]:
    """Tags inside operations that are not opened, each with the name of that operation."""
    for eqn in jaxpr.eqns:
        if where and eqn.primitive.name == "name":
            yield eqn.params["name"], where
        around = where or ("" if eqn.primitive.name in _OPENED else eqn.primitive.name)
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _hidden(inner, around)


def suggestion(name: str, names: Iterable[str]) -> str:
    """Give " (did you mean 'stage4'?)", or nothing where no name comes close."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listing(found: Mapping[str, tuple[int, ...]], most: int = 40) -> str:
    """Give "'stem' (112, 112, 64), 'stage1' (56, 56, 64)", cut in the middle if very long."""
    names = [f"{name!r} {shape}" for name, shape in found.items()]
    if len(names) > most:
        names[most // 2 : -most // 2] = [f"... {len(names) - most} more ..."]
    return ", ".join(names)
