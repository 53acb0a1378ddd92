"""What `convolve` saves against XLA's convolutions: pointwise, depthwise and unpadded ones.

    python benchmarks/convolve.py
    python benchmarks/convolve.py --kernels     # only the gradients of kernels

The convolutions are those of SqueezeNet and MobileNetV2 at 224 x 224 pixels, 16 images. Blocks of
MobileNetV2 are compared too, whose gradient is where a sum of slices has to have its own transpose:
`slices` is the same sum, transposed by JAX. Gradients of kernels are those of networks in training:
a CIFAR ResNet with 128 pictures, SimCLR's Conv-4 with 512, ResNet's with 16.
"""

import argparse

import jax
import jax.numpy as jnp
from measure import alternate, report, summary

from jaxfmi.models.depthwise import depthwise_conv, sum_of_slices
from jaxfmi.models.layers import convolve

POINTWISE = ((55, 96, 16), (55, 16, 64), (27, 256, 32), (13, 512, 1000), (7, 320, 1280))
UNPADDED = ((224, 7, 3, 96, 2), (227, 7, 3, 96, 2), (224, 3, 3, 64, 2), (56, 3, 64, 64, 1))
DEPTHWISE = ((112, 32, 1), (112, 96, 2), (56, 144, 1), (28, 192, 1), (14, 576, 1), (7, 960, 1))
TRAINED = ((128, 32, 3, 16), (128, 32, 16, 16), (128, 16, 32, 32), (128, 8, 64, 64))
TRAINED += ((512, 16, 16, 32), (512, 8, 64, 128), (16, 56, 64, 64), (16, 14, 256, 256))
BLOCKS = ((112, 16, 96, 24, 2), (56, 24, 144, 24, 1), (56, 24, 144, 32, 2), (28, 32, 192, 64, 2))
LAYOUT = {
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "precision": None,
}


def contestant(conv, gradient: bool, x: jax.Array, kernel: jax.Array, stride: int, padding: str):
    """A compiled run of `conv`, or of the gradient of its squares, without arguments."""
    layout = LAYOUT | {"feature_group_count": x.shape[-1] // kernel.shape[2]}

    def apply(x, kernel):
        return conv(x, kernel, (stride, stride), padding, **layout)

    program = jax.jit(jax.grad(lambda *a: jnp.sum(apply(*a) ** 2)) if gradient else apply)
    return lambda: program(x, kernel)


def cases():
    """The name, the input's shape, the kernel's shape, stride and padding of each convolution."""
    for side, inputs, outputs in POINTWISE:
        yield f"1×1 to {outputs}", (16, side, side, inputs), (1, 1, inputs, outputs), 1, "SAME"
    for side, channels, stride in DEPTHWISE:
        name = f"3×3 depthwise, stride {stride}"
        yield name, (16, side, side, channels), (3, 3, 1, channels), stride, "SAME"
    for side, window, inputs, outputs, stride in UNPADDED:
        name = f"{window}×{window} unpadded, stride {stride}"
        kernel = (window, window, inputs, outputs)
        yield name, (16, side, side, inputs), kernel, stride, "VALID"


def block(
    depthwise, gradient: bool, side: int, inputs: int, hidden: int, outputs: int, stride: int
):
    """A compiled run of an inverted residual without arguments: 1×1, depthwise 3×3, 1×1."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (16, side, side, inputs))
    widen = jax.random.normal(keys[1], (inputs, hidden))
    kernel = jax.random.normal(keys[2], (3, 3, 1, hidden))
    project = jax.random.normal(keys[3], (hidden, outputs))

    def apply(x, widen, kernel, project):
        y = depthwise(jax.nn.relu6(x @ widen), kernel, (stride, stride), ((1, 1), (1, 1)))
        return jax.nn.relu6(y) @ project

    program = jax.jit(jax.grad(lambda *a: apply(*a).sum()) if gradient else apply)
    return lambda: program(x, widen, kernel, project)


def xla(x, kernel, strides, padding):
    """XLA's depthwise convolution."""
    layout = LAYOUT | {"feature_group_count": x.shape[-1]}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **layout)


def slices(x, kernel, strides, padding):
    """A sum of slices that JAX transposes."""
    return sum_of_slices(x, kernel, strides=strides, padding=padding)


def blocks(runs: int) -> list[dict]:
    """Rows of MobileNetV2's blocks, forward and with the gradient to their input."""
    rows, contestants = [], {"XLA": xla, "slices": slices, "convolve": depthwise_conv}
    for side, *widths, stride in BLOCKS:
        for what, gradient in (("forward", False), ("and gradient", True)):
            programs = {
                n: block(f, gradient, side, *widths, stride) for n, f in contestants.items()
            }
            times = summary(alternate(programs, runs), against="convolve")
            rows.append(
                {"block": "→".join(map(str, widths)), "side": side, "stride": stride, "what": what}
                | {f"{n} s": times[n]["seconds"] for n in contestants}
                | {f"{n} ratio": times[n]["ratio"] for n in ("XLA", "slices")}
            )
    return rows


def kernels(runs: int) -> list[dict]:
    """Rows of gradients of 3×3 kernels alone."""
    rows = []
    for count, side, inputs, outputs in TRAINED:
        x = jax.random.normal(jax.random.key(0), (count, side, side, inputs))
        y = jax.random.normal(jax.random.key(1), (count, side, side, outputs))
        kernel = jax.random.normal(jax.random.key(2), (3, 3, inputs, outputs))

        def program(conv):
            def gradient(x, y, kernel):
                layout = LAYOUT | {"feature_group_count": 1}
                return jax.vjp(lambda k: conv(x, k, (1, 1), "SAME", **layout), kernel)[1](y)

            compiled = jax.jit(gradient)
            return lambda: compiled(x, y, kernel)

        both = {"XLA": jax.lax.conv_general_dilated, "convolve": convolve}
        times = summary(alternate({n: program(f) for n, f in both.items()}, runs), "convolve")
        rows.append(
            {"pictures": count, "side": side, "channels": f"{inputs} to {outputs}"}
            | {f"{n} s": times[n]["seconds"] for n in both}
            | {"ratio": times["XLA"]["ratio"]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    runs = options.runs
    report("convolve_kernels", kernels(runs), runs=runs)
    if options.kernels:
        return
    rows = []
    for name, shape, window, *how in cases():
        x = jax.random.normal(jax.random.key(0), shape)
        kernel = jax.random.normal(jax.random.key(1), window)
        for what, gradient in (("forward", False), ("and gradient", True)):
            both = {"XLA": jax.lax.conv_general_dilated, "convolve": convolve}
            programs = {n: contestant(f, gradient, x, kernel, *how) for n, f in both.items()}
            times = summary(alternate(programs, runs), against="convolve")
            seconds = {f"{n} s": times[n]["seconds"] for n in both}
            given = "×".join(map(str, shape[1:]))
            rows.append(
                {"convolution": name, "input": given, "what": what}
                | seconds
                | {"ratio": times["XLA"]["ratio"]}
            )
    report("convolve", rows, runs=runs)
    report("convolve_blocks", blocks(runs), runs=runs)


if __name__ == "__main__":
    main()
