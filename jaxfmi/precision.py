"""Operations of a network of low precision, computed in float32.

Relevance is a product of quotients, one per layer, and what bfloat16 rounds in each of them adds up
(3e-3 over 16 layers). So from the first gate on a network is run in float32, with its kernels
as they are in its own precision.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core

from jaxfmi.explainer import wide
from jaxfmi.regrade import regrade
from jaxfmi.taps import Op

_DTYPES = ("new_dtype", "preferred_element_type")  # parameters that say what an output is


def in_float32(op: Op) -> Op:
    """The operation with float32 where the program has fewer bits, in operands and outputs.

    Functions are opened, so that they have the derivatives of their operations; only ``regrade`` is
    known to be more than these. Loops and branches compute as they are, between casts.
    """
    if not op.narrow:
        return op

    def bind(*operands):
        if op.kind == regrade.__name__:
            value, *parts = map(widened, operands)
            return [regrade(value, list(zip(parts[::2], parts[1::2], strict=True)))]
        if op.inside is not None:
            return op.inside(lambda op, *operands: in_float32(op)(*operands), *operands)
        if any(core.jaxprs_in_params(op.params)):
            return jax.tree.map(widened, as_written(op, operands))
        finer = {k: _finer(op.params[k]) for k in _DTYPES if op.params.get(k) is not None}
        return op.bind(*map(widened, operands), **finer)

    return op._replace(bind=bind)


def as_written(op: Op, operands):
    """Compute an operation of what may have been widened, in the precision of the program."""
    return op(*map(_cast, operands, op.dtypes))


def widened(value):
    """A number, or an array, in float32 if it has fewer bits; what can be read stays so."""
    if not is_float(jnp.result_type(value)):
        return value
    if isinstance(value, Tracer):
        return wide(value)
    with jax.ensure_compile_time_eval():
        return wide(jnp.asarray(value))


def _finer(dtype):
    return jnp.promote_types(dtype, jnp.float32) if is_float(dtype) else dtype


def _cast(value, dtype):
    return jnp.asarray(value, dtype) if is_float(dtype) else value


def is_float(dtype) -> bool:
    """Whether a dtype is one of floating point numbers."""
    return jnp.issubdtype(dtype, jnp.floating)
