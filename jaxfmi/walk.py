"""What every operation of a network does with relevance: the rule that ``rewrite`` is given.

Values that depend on a gate are held in types of this file, and every operation that meets one is
answered for here: layers are pending until they are complete, gates let the signal take all, sums
of branches are split, curved functions pass relevance on, and what is linear and homogeneous has
its own gradient. Everything else is an error, as soon as relevance would have to pass it: how a map
of attention was made does not matter to what it multiplies.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi.explainer import wide
from jaxfmi.gradient import is_relu
from jaxfmi.heatmap import divide
from jaxfmi.operations import ELEMENTWISE, LAYOUT, RESIZING
from jaxfmi.pending import PRODUCTS, First, Pending, Settings, absorbed, begin, linear, one
from jaxfmi.pixels import Pixels, changed, gated, marked, moved
from jaxfmi.precision import as_written, in_float32, is_float, widened
from jaxfmi.regrade import passed, regrade
from jaxfmi.rules import terms
from jaxfmi.taps import INSIDE, Op

MARK = "jaxfmi: the input"  # the tag of the pixels
ATTENTION = "attention"  # what is tagged so is a gate, whatever made it
_GATES = ("logistic", "sigmoid", "hard_sigmoid", "tanh", "erf", "erfc")
_MOVED = LAYOUT | RESIZING
_HOMOGENEOUS = _MOVED | set(
    """abs adaptive_avg_pool cumsum leaky_relu max max_pool neg reduce_max reduce_min reduce_sum
    reduce_window_max reduce_window_sum regrade select_n""".split()
)
_CONSTANT = ("argmax", "argmin", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "stop_gradient")
_CURVES = set(  # no activations: what they give at 0 or how steep they are there is no share of x
    """cbrt cos erf_inv exp exp2 integer_pow log log1p pow rsqrt sign sin sqrt square""".split()
)
_POSITIVE = ("abs", "exp", "hard_sigmoid", "logistic", "relu", "relu6", "sigmoid", "softplus")


class _Value(NamedTuple):
    """An array that depends on a gate; its gradient is ruled."""

    array: jax.Array
    positive: bool = False  # known to have no negative entry


class _Gate(NamedTuple):
    """A bounded function of a value, which may turn out to multiply another one."""

    array: jax.Array
    settled: "_Value | _Refused"  # as an activation like others
    positive: bool


class _Refused(NamedTuple):
    """A value that no relevance can pass: an error where it would have to."""

    array: jax.Array
    why: str
    positive: bool = False


class _NoRuleError(ValueError):
    """An operation has no rule."""


_HELD = (_Value, Pixels, _Gate, _Refused, Pending)


def is_held(v) -> bool:
    """Whether a value depends on a gate."""
    return isinstance(v, _HELD)


class Walk:
    """The rule for ``rewrite``: answers for every operation that depends on a gate."""

    def __init__(self, gates, settings: Settings, until: str | None, needed: int | None):
        self.gates, self.settings, self.until = gates, settings, until
        self.needed = needed  # layers and operations on maps that there are; None while counting
        self.met, self.reached = 0, None

    def __call__(self, op: Op, *operands):
        """Answer for an operation, or leave it: ``rewrite`` calls this for each."""
        op = op._replace(name=op.kind)
        if self.reached is not None:  # what follows is of no interest
            return _constant(op, operands) if any(map(is_held, operands)) else NotImplemented
        if op.tag:
            return self.at_tag(op.tag, operands[0])
        self.met += any(op.dynamic) and (op.name in PRODUCTS or not self.is_vector(operands))
        if not any(map(is_held, operands)):
            return NotImplemented
        if op.name in _CONSTANT or jnp.issubdtype(_cast_to(op), jnp.bool_):
            return _constant(op, operands)
        fine = in_float32(op)
        if op.narrow and not op.opened:
            operands = tuple(v if is_held(v) else widened(v) for v in operands)
        try:
            return self.answer(fine, operands)
        except _NoRuleError as error:
            return _held(fine(*map(_bare, operands)), partial(_Refused, why=str(error)))

    def at_tag(self, name: str, v):
        """Put the gate on, or stop; other tags are transparent, also for pending layers."""
        if name == MARK and name in self.gates:
            return marked(v, self.gates[name])
        if name in self.gates:
            v = self.settle(v) if is_held(v) else _Value(v)
            v = _Value(wide(v.array) * self.gates[name], v.positive)
        if name == self.until:
            self.reached = self.array(v)
        if name == ATTENTION and isinstance(v, _Value | _Refused):
            v = _Gate(v.array, v, v.positive)
        return v

    def answer(self, op: Op, operands):
        """Find what an operation on held values does with relevance, or raise a ValueError."""
        held = [i for i, v in enumerate(operands) if is_held(v)]
        if op.name in PRODUCTS:
            return self.product(op, operands, held)
        known = op.name in _HOMOGENEOUS or (len(operands) == 1 and op.name in ELEMENTWISE)
        if op.opened and not known:
            return NotImplemented
        if op.primitive == "custom_jvp_call" and not known:
            return INSIDE
        if not is_float(_cast_to(op)):
            raise _NoRuleError(f"no relevance passes a cast to {_cast_to(op)}, at {op.where}")
        if (out := absorbed(op, operands, held[0])) is not None:
            return out
        if self.met == self.needed and self.is_vector(operands):
            return _held(self.plain(op, operands), _Value)  # behind all of them: the start
        for way in (self.through_constant, self.layout, self.activation, self.several):
            if (out := way(op, operands, held)) is not None:
                return out
        if self.needed is None and self.is_vector(operands):
            return _held(self.plain(op, operands), _Value)
        raise _NoRuleError(
            f"relevance has no rule for {op.name!r} of {len(held)} activations, at {op.where}; "
            "tag a value behind it and explain that, or use a method of gradients"
        )

    def product(self, op: Op, operands, held):
        """Begin a layer."""
        at, kernel = held[0], operands[1 - held[0]]
        if len(held) != 1 or (at == 1 and op.name != "dot_general"):
            raise _NoRuleError(
                f"relevance needs constant kernels, unlike {op.name!r} at {op.where}"
            )
        if op.params.get("batch_group_count", 1) != 1:
            raise _NoRuleError(f"relevance has no rule for batch_group_count, at {op.where}")
        v = operands[at]
        v = v if isinstance(v, Pixels) else self.settle(v)
        if isinstance(v, Pixels):
            start = First(v.gate, *v.extremes, v.place)
            return begin(op, at, gated(v), kernel, True, start)
        return begin(op, at, v.array, kernel, not v.positive, None)

    def through_constant(self, op: Op, operands, held):
        """Sums and products with a constant."""
        if op.name not in ("add", "sub", "mul", "div") or len(held) != 1:
            return None
        v, c, left = operands[held[0]], operands[1 - held[0]], held[0] == 0
        if op.name == "div" and not left:
            return None

        def on(t):
            return op(t, c) if left else op(c, t)

        if isinstance(v, Pixels):
            return changed(v, on(v.array))
        if isinstance(v, _Gate):
            settled = [v.settled if i in held else c for i, c in enumerate(operands)]
            return _Gate(on(v.array), self.through_constant(op, settled, held), False)
        if isinstance(v, _Refused):
            return v._replace(array=on(v.array), positive=False)
        v = self.settle(v)
        if op.name in ("mul", "div"):
            return _Value(on(v.array), v.positive and _not_negative(c))
        if self.settings.bias and self.settings.norm == "merge":
            return _Value(on(v.array))  # as a bias does, the constant keeps its share
        return _Value(passed(on(v.array), v.array))

    def layout(self, op: Op, operands, held):
        """Of pixels the gate moves along, and a gate stays a gate."""
        kinds = {type(operands[i]) for i in held}
        if op.name in _MOVED and kinds == {Pixels}:
            return moved(op, operands)
        if op.name not in _MOVED or kinds != {_Gate} or len(held) > 1:
            return None
        v = operands[held[0]]

        def by(array):
            out = op(*(array if is_held(o) else o for o in operands))
            return out if isinstance(out, list | tuple) else [out]

        parts = [
            _Gate(a, v.settled._replace(array=s, positive=False), v.positive)
            for a, s in zip(by(v.array), by(v.settled.array), strict=True)
        ]
        return parts if op.name == "split" else parts[0]

    def activation(self, op: Op, operands, held):
        """A function of single entries."""
        if op.name not in ELEMENTWISE or len(held) != 1 or op.name in _HOMOGENEOUS - {"max"}:
            return None
        v = operands[held[0]]
        if op.name in _GATES and isinstance(v, _Refused):  # it may turn out to be one
            y = one(op(*map(_bare, operands)))
            return _Gate(y, v._replace(array=y), op.name in _POSITIVE)
        if op.name in _CURVES:
            return None
        v = self.settle(v)
        y = one(self.plain(op, operands))
        if op.name != "relu6" and is_relu(op, *operands):
            return _Value(y, True)
        positive = op.name in _POSITIVE
        out = _Value(passed(y, v.array), positive)
        return _Gate(y, out, positive) if op.name in _GATES else out

    def several(self, op: Op, operands, held):
        """Sums of branches, gated values, and all that hands relevance on by its own gradient."""
        if op.name == "mul" and len(held) == 2:
            at = [isinstance(v, _Gate) for v in operands]
            if not any(at):  # a product of two activations
                return None
            if all(at) and operands[0].positive == operands[1].positive:  # which one is the signal?
                why = f"a product of two gates, at {op.where}, is no activation"
                y = op(*map(_bare, operands))
                return _Gate(y, _Refused(y, why), operands[0].positive)
            first = operands[0].positive if all(at) else at[0]
            gate, signal = operands if first else operands[::-1]
            signal = self.settle(signal)
            gated = op(signal.array, jax.lax.stop_gradient(gate.array))
            return _Value(gated, signal.positive and gate.positive)
        settled = [self.settle(v) if is_held(v) else v for v in operands]
        positive = all(v.positive if is_held(v) else _not_negative(v) for v in settled)
        if op.name in ("add", "sub", "add_any") and len(held) == 2:
            return self.branches(op, settled[0].array, settled[1].array, positive)
        if op.name not in _HOMOGENEOUS:
            return None
        positive = op.name == "abs" or (positive and op.name != "neg")
        return _held(self.plain(op, operands), partial(_Value, positive=positive))

    def branches(self, op: Op, a, b, positive):
        """A sum of two branches, in proportion to them or to their positive parts."""
        y = op(a, b)
        if self.settings.split == "positive":
            p = jax.nn.relu(a) + jax.nn.relu(-b if op.name == "sub" else b)
            y = regrade(y, [(divide(wide(y), wide(p)), p)])
        return _Value(y, positive and op.name != "sub")

    def settle(self, v) -> _Value:
        """End what is pending."""
        if isinstance(v, Pixels):
            return _Value(gated(v))
        if isinstance(v, _Gate):
            return self.settle(v.settled)
        if isinstance(v, _Refused):
            raise _NoRuleError(v.why)
        if isinstance(v, Pending):
            layer = linear(v, self.settings)
            parts = terms(self.settings.composite, layer)
            return _Value(regrade(jax.lax.stop_gradient(v.array), parts))
        return v

    def array(self, v):
        """The bare array."""
        return self.settle(v).array if is_held(v) else v

    def plain(self, op: Op, operands):
        """The operation with its own gradient."""
        return op(*map(self.array, operands))

    def is_vector(self, operands) -> bool:
        """Whether what is computed with has one axis at most, as logits have."""
        return all(sum(n > 1 for n in jnp.shape(getattr(v, "array", v))) <= 1 for v in operands)


def _cast_to(op: Op):
    return op.params["new_dtype"] if op.name == "convert_element_type" else jnp.float32


def _constant(op: Op, operands):
    """What no relevance has to pass, as the network computes it."""
    return as_written(op, tuple(map(_bare, operands)))


def _held(out, hold):
    """Hold what an operation gave: one array, or a list of them."""
    return [hold(v) for v in out] if isinstance(out, list | tuple) else hold(out)


def _bare(v):
    """The array whose gradient does not matter."""
    return jax.lax.stop_gradient(v.array) if is_held(v) else v


def _not_negative(c) -> bool:
    return not isinstance(c, Tracer) and bool((np.asarray(c) >= 0).all())
