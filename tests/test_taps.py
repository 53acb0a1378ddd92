"""Tags, and what reads, edits and re-rules a traced function, in every wrapping that JAX has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from nets import images, tiny

from jaxfmi import capture, class_score, edit, rewrite, tag, tags
from jaxfmi.taps import INSIDE, depends

X = jnp.arange(1.0, 4)
SHAPES = {"stem": (1, 15, 11, 6), "down": (1, 8, 6, 8), "block": (1, 8, 6, 8), "pooled": (1, 8)}


def plain(x):
    return tag(jnp.sin(x), "wave").sum()


def identity_jit(f):
    return jax.jit(jax.jit(lambda x: f(x)))


def inside_custom_jvp(f):
    g = jax.custom_jvp(f)
    g.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return g


WRAPPINGS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "nested jit": identity_jit,
    "remat": jax.checkpoint,
    "nnx.jit": nnx.jit,
    "jit of remat": lambda f: jax.jit(jax.checkpoint(f)),
}
OPAQUE = {
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (c, f(x)), 0, None, 2)[1].sum(),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda x: x.sum(), x),
    "while": lambda f: lambda x: jax.lax.while_loop(lambda c: c < 0, lambda c: f(x + c), x.sum()),
    "custom_vjp_call": lambda f: nondifferentiated(f),
    "custom_jvp_call": inside_custom_jvp,
}


def nondifferentiated(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, g: (g * x,))
    return g


def close(got, expected, atol=1e-6):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_capture_and_edit_through_wrappings(wrap):
    f = wrap(plain)
    assert tags(f, X) == {"wave": (3,)}
    out, found = capture(f, "wave")(X)
    close(out, jnp.sin(X).sum())
    close(found["wave"], jnp.sin(X))
    close(edit(f, {"wave": lambda a: 2 * a})(X), 2 * out)


@pytest.mark.parametrize(
    "outer", [jax.jit, jax.checkpoint, jax.vmap, nnx.jit], ids=["jit", "remat", "vmap", "nnx.jit"]
)
def test_transforms_around_capture_and_edit(outer):
    batch = jnp.stack([X, X + 1])
    f = outer(lambda x: (capture(plain, "wave")(x)[1]["wave"], edit(plain, {"wave": jnp.abs})(x)))
    captured, edited = f(batch)
    close(captured, jnp.sin(batch))
    close(edited, jnp.abs(jnp.sin(batch)).sum(-1 if outer is jax.vmap else None))


def test_gradients_pass_through_an_edit_and_end_at_a_replaced_value():
    close(jax.grad(edit(plain, {"wave": lambda a: a**2}))(X), 2 * jnp.sin(X) * jnp.cos(X))
    close(jax.grad(edit(plain, {"wave": jnp.ones_like}))(X), 0 * X)
    head = jax.grad(lambda a: edit(plain, {"wave": lambda _: a})(X))
    close(head(X), 1 + 0 * X)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_networks(kind):
    score, x = class_score(tiny(kind)), images(1)[0]
    assert tags(score, x, 2) == SHAPES
    assert list(tags(score, x, 2)) == list(SHAPES)  # in order
    out, found = capture(score, *SHAPES)(x, 2)
    close(out, score(x, 2))
    assert {name: a.shape for name, a in found.items()} == SHAPES
    close(found["block"].mean((1, 2)), found["pooled"])
    replaced = edit(score, {name: lambda _, a=a: a for name, a in found.items()})
    close(replaced(0 * x, 2), out)
    assert not np.isclose(edit(score, {"down": lambda a: 0 * a})(x, 2), out)


def test_a_replaced_value_cuts_off_what_led_to_it():
    score, x = class_score(tiny("nnx")), images(1)[0]
    head = jax.jit(lambda a: edit(score, {"block": lambda _: a})(x, 2))
    assert "convolution" in jax.jit(score).lower(x, 2).compile().as_text()
    assert "convolution" not in head.lower(jnp.ones(SHAPES["block"])).compile().as_text()


def test_edits_keep_tags_and_compose():
    twice = edit(edit(plain, {"wave": lambda a: a + 1}), {"wave": lambda a: 2 * a})
    out, found = capture(twice, "wave")(X)
    close(found["wave"], 2 * (jnp.sin(X) + 1))  # the inner edit comes first
    close(out, found["wave"].sum())
    assert tags(twice, X) == {"wave": (3,)}


def test_an_edit_sees_an_earlier_one():
    def f(x):
        return tag(2 * tag(x, "first"), "second").sum()

    out, found = capture(edit(f, {"first": jnp.zeros_like, "second": lambda a: a + 1}), "second")(X)
    close(found["second"], 0 * X + 1)
    close(out, 3)


def test_an_edit_keeps_dtype_and_shape():
    half = X.astype(jnp.bfloat16)
    f = edit(lambda x: tag(x, "a") * 2, {"a": lambda a: a.astype(jnp.float32) + 1 / 3})
    assert f(half).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"'wave' has shape \(3,\), its new value \(2,\)"):
        edit(plain, {"wave": lambda a: a[:2]})(X)


def test_the_error_for_a_missing_tag_suggests_and_lists():
    with pytest.raises(ValueError, match=r"no tag 'wavy' \(did you mean 'wave'\?\); .*'wave' \(3,"):
        capture(plain, "wavy")(X)
    with pytest.raises(ValueError, match=r"no tag 'xyz'; there are 'wave' \(3,\)"):
        edit(plain, {"xyz": lambda a: a})(X)
    with pytest.raises(ValueError, match=r"has no tags.*jaxfmi\.tag.*tag_modules"):
        capture(jnp.sum, "stage4")(X)


def test_a_long_list_of_tags_is_cut():
    def f(x):
        for i in range(100):
            x = tag(x + 1, f"layer{i}")
        return x

    with pytest.raises(ValueError, match=r"'layer0'.*\.\.\. 60 more \.\.\..*'layer99'"):
        capture(f, "missing")(X)


@pytest.mark.parametrize("name", OPAQUE)
def test_tags_in_loops_branches_and_custom_derivatives_are_reported(name):
    f = OPAQUE[name](plain)
    assert tags(f, X) == {}
    for reach in (capture(f, "wave"), edit(f, {"wave": lambda a: a})):
        with pytest.raises(ValueError, match=f"'wave' is inside a {name}.*tag a value outside"):
            reach(X)


@pytest.mark.parametrize(
    "reach", [lambda f: capture(f, "a"), lambda f: edit(f, {"a": jnp.sin})], ids=["capture", "edit"]
)
def test_a_tag_met_twice_is_an_error(reach):
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        reach(lambda x: tag(tag(x, "a") + 1, "a"))(X)


def test_pytrees_in_and_out():
    def f(args, scale):
        a, b = tag(args["a"], "a"), args["b"]
        return {"sum": a + b, "more": (scale * a, [b])}

    args = {"a": X, "b": X + 1}
    out, found = capture(f, "a")(args, 3.0)
    close(found["a"], X)
    close(out["more"][0], 3 * X)
    jax.tree.map(close, rewrite(f, lambda op, *operands: NotImplemented)(args, 3.0), f(args, 3.0))
    assert isinstance(out["more"], tuple)


# Rewriting operations

RELUS = {
    "jax.nn.relu": (jax.nn.relu, "relu"),
    "nnx.relu": (nnx.relu, "relu"),
    "jit of relu": (jax.jit(lambda x: jax.nn.relu(x)), "relu"),
    "jnp.maximum": (lambda x: jnp.maximum(x, 0), "max"),
    "jnp.maximum from the left": (lambda x: jnp.maximum(0.0, x), "max"),
    "jax.nn.relu6": (jax.nn.relu6, "relu6"),
    "clip": (lambda x: jnp.clip(x, 0), "clip"),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_every_spelling_of_relu_is_offered(spelling):
    f, name = RELUS[spelling]

    def rule(op, *operands):
        if op.name != name:
            return NotImplemented
        assert sum(op.dynamic) == 1
        return 10 * operands[op.dynamic.index(True)]

    close(rewrite(lambda x: f(x - 2).sum(), rule)(X), 10 * (X - 2).sum())


def test_inside_opens_what_has_a_derivative_of_its_own():
    met = []

    def rule(op, *operands):
        met.append(op.name)
        return INSIDE if op.primitive.startswith("custom_") else NotImplemented

    got = rewrite(lambda x: jax.nn.relu(x) + nondifferentiated(plain)(x), rule)(X - 2)
    close(got, jax.nn.relu(X - 2) + plain(X - 2))
    assert {"relu", "max", "sin", "name"} <= set(met)
    # What is opened loses its own derivative: sine's is the cosine.
    close(jax.grad(nondifferentiated(plain))(X), X)
    close(jax.grad(rewrite(nondifferentiated(plain), rule))(X), jnp.cos(X))


def test_an_untouched_custom_derivative_is_kept():
    untouched = rewrite(nondifferentiated(plain), lambda op, *operands: NotImplemented)
    close(jax.grad(untouched)(X), X)


def test_an_operation_with_several_outputs():
    def halve(op, *operands):
        return [v / 2 for v in op(*operands)] if op.name == "split" else NotImplemented

    got = rewrite(lambda x: jnp.split(x, 3), halve)(X)
    close(jnp.concatenate(got), X / 2)


def test_dynamic_tells_activations_from_weights():
    w = jnp.ones((3, 2))
    seen = {}

    def rule(op, *operands):
        seen[op.name] = op.dynamic
        return NotImplemented

    rewrite(lambda x: (x @ w) * (w + 1).sum(), rule)(X)
    assert seen["dot_general"] == (True, False)
    assert seen["mul"] == (True, False)
    assert "reduce_sum" not in seen or seen["reduce_sum"] == (False,)


def test_a_rule_replaces_a_whole_function_by_its_name():
    @jax.jit
    def block(x):
        return jnp.sin(x) + 1

    got = rewrite(
        lambda x: block(x).sum(), lambda op, *v: v[0] if op.name == "block" else NotImplemented
    )
    close(got(X), X.sum())


def test_a_rewrite_is_traced_and_batched_like_the_function():
    def rule(op, *operands):
        return operands[0] if op.name == "sin" else NotImplemented

    f = rewrite(plain, rule)
    close(jax.jit(jax.vmap(f))(jnp.stack([X, 2 * X])), [6, 12])
    close(jax.grad(f)(X), 1 + 0 * X)


def test_a_deep_network_traces_quickly():
    def f(x):
        for i in range(110):
            x = tag(jax.nn.relu(x @ jnp.eye(3) + 0.1), f"layer{i}")
        return x.sum()

    close(jax.jit(jax.grad(lambda a: edit(f, {"layer100": lambda _: a})(X)))(X), 1 + 0 * X)
    assert len(tags(f, X)) == 110


# What depends on the input, and how


def bypassed(x):
    return tag(x, "a").sum() + x[0]


@pytest.mark.parametrize(
    ("f", "way"),
    [
        (lambda x: tag(x, "a").sum(), False),
        (jax.jit(lambda x: jax.jit(lambda v: tag(v, "a"))(x).sum()), False),
        (lambda x: tag(x, "a").sum() / x.shape[0], False),
        (bypassed, True),
        (lambda x: tag(x, "a").sum() + 0 * x[0], True),  # zeros count
        (lambda x: tag(2 * x, "a").sum() + jax.lax.cond(x[0] > 9, jnp.sum, jnp.max, x), True),
    ],
)
def test_depends(f, way):
    assert depends(f, X, cut=["a"]) is way
    assert depends(f, X)
    assert not depends(lambda x: jnp.ones(()), X)
    seen = []
    jax.vmap(lambda x: seen.append(depends(f, x, cut=["a"])) or x)(jnp.stack([X, X]))
    assert seen == [way]


def test_depends_on_its_first_argument_only():
    assert not depends(lambda x, y: tag(x, "a") * y, X, X, cut=["a"])


@functools.cache
def scored():
    return class_score(tiny("linen"))


@pytest.mark.parametrize(
    ("cut", "way"), [("stem", False), ("down", False), ("block", False), ("pooled", False)]
)
def test_depends_of_a_network(cut, way):
    assert depends(scored(), images(1)[0], 1, cut=[cut]) is way
