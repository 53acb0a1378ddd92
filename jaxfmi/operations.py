"""What is known of single operations, by the names that a traced program has for them."""

#: Moves, copies, pads and joins entries; computes nothing.
LAYOUT = frozenset(
    """broadcast_in_dim concatenate convert_element_type copy dynamic_slice expand_dims gather name
    pad reduce_precision reshape rev slice split squeeze transpose""".split()
)

#: JAX's own functions that resize: averages of neighbours, whose weights are no network's.
RESIZING = frozenset(("_resize", "_scale_and_translate"))

#: Each entry of the output depends on one entry of the operand alone.
ELEMENTWISE = frozenset(
    """abs celu clamp cos cbrt elu erf erf_inv erfc exp exp2 expm1 gelu hard_sigmoid hard_silu
    hard_swish hard_tanh integer_pow leaky_relu log log1p log_sigmoid logistic max min mish pow relu
    relu6 rsqrt selu sigmoid sign silu sin soft_sign softplus sqrt square squareplus swish tanh
    """.split()
)
