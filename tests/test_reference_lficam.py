"""Golden values, unit cases and laws of LFI-CAM and ABN, by which their twin is checked."""

import functools

import numpy as np
import pytest
import reference_lficam as ref
import reference_resnet as net
from reference import finite_difference, grad_cam, resize_bilinear
from reference_net import GOLDEN

LABELS = [0, 1, 2, 1]
SIZES = {"baseline": 0, "lfi": 1, "abn": 2}


def close(got, expected, atol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    close(got, expected, 0.51 * 10.0**-digits)


def count(make, *args, **options) -> int:
    parameters = net.Parameters(net.unwritten)
    make(parameters, *args, **options)
    return sum(parameters.sizes)


@functools.cache
def golden_net(kind):
    return ref.cifar_resnet(net.Parameters(), 8, 3, kind)


@functools.cache
def golden_image():
    """x[b,c,h,w] = sin(.21h(b+1)+.5c) cos(.17w+.9b) + .3 sin(.05hw+c), [4,32,32,3]."""
    b, h, w, c = np.indices((4, 32, 32, 3))
    return np.sin(0.21 * h * (b + 1) + 0.5 * c) * np.cos(0.17 * w + 0.9 * b) + 0.3 * np.sin(
        0.05 * h * w + c
    )


@functools.cache
def run(kind, training):
    forward = ref.abn if kind == "abn" else ref.lfi_cam
    return forward(golden_net(kind), golden_image(), training)


@pytest.fixture(scope="module")
def arrays():
    path = GOLDEN.parent / "lficam_golden.npz"
    if not path.exists():
        pytest.skip(f"no golden arrays: {path.name} belongs in {path.parent}")
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def maps(rng):
    """F [2,4,5,6], at least 0 and partly 0, w [2,6], image [2,16,20,3]."""
    features = np.maximum(rng.standard_normal((2, 4, 5, 6)), 0)
    weights = ref.softmax(rng.standard_normal((2, 6)))
    return features, weights, rng.standard_normal((2, 16, 20, 3))


# The authors' programs


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("kind", ["lfi", "abn"])
def test_golden_arrays(arrays, kind, training):
    mode, got = "train" if training else "eval", run(kind, training)
    close(golden_image().transpose(0, 3, 1, 2), arrays["x"], 1e-13)
    names = {"logits": "logits", "att": "attention", "layer3": "features"}
    if kind == "abn":
        names["attlogits"] = "aux_logits"
    for key, name in names.items():
        expected = arrays[f"{kind}_{mode}_{key}"]
        close(got[name], expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected)


def test_closed_form_parameters():
    for kind, tensors, total in (("lfi", 41, 225_555), ("abn", 47, 135_679)):
        parameters = net.Parameters()
        ref.cifar_resnet(parameters, 8, 3, kind)
        assert (len(parameters.sizes), sum(parameters.sizes)) == (tensors, total)


def test_lfi_cam_in_evaluation_mode():
    got = run("lfi", False)
    logits = [
        [-0.083006318, -0.282490072, -0.319310157],
        [-0.117643496, -0.174784001, -0.177316771],
        [-0.176671256, -0.396889815, -0.402070990],
        [-0.094571988, -0.381610848, -0.416134036],
    ]
    printed(got["logits"], logits, 9)
    row = "0.355759129 0.409697766 0 0.014740327 0.124150701 0.386852073 0.421078957 0.740991412"
    printed(got["attention"][0, 3, :, 0], np.array(row.split(), float), 9)
    sums = [17.799959649, 13.969249991, 20.790597381, 17.276042139]
    printed(got["attention"].sum((1, 2, 3)), sums, 9)
    shares = [0.997524894, 0.985717683, 0.994111334, 0.991914003]
    printed(ref.effective_share(got["importance"]), shares, 9)


def test_lfi_cam_in_training_mode():
    got = run("lfi", True)
    printed(ref.cross_entropy(got["logits"], LABELS), 1.2632455908, 10)
    printed(got["logits"][0], [-0.049655801, -0.504762197, -0.534142829], 9)
    sums = [21.520178098, 19.880253159, 21.432862902, 22.594593207]
    printed(got["attention"].sum((1, 2, 3)), sums, 9)


def test_abn():
    got = run("abn", False)
    printed(got["logits"][0], [0.263559371, 0.345528115, 0.159160944], 9)
    printed(got["aux_logits"][0], [-1.599195943, 1.599799230, -0.941555898], 9)
    sums = [158.100563576, 157.182182274, 158.169082907, 158.842075390]
    printed(got["attention"].sum((1, 2, 3)), sums, 9)
    got = run("abn", True)
    losses = [ref.cross_entropy(got[name], LABELS) for name in ("logits", "aux_logits")]
    printed(sum(losses), 2.1322805619, 10)
    printed(got["logits"][0], [0.318183565, 0.786294308, 0.470222193], 9)
    printed(got["aux_logits"][0], [-0.945185305, 0.683570426, -0.154795404], 9)
    sums = [131.041362026, 131.212490884, 130.204165997, 134.255338162]
    printed(got["attention"].sum((1, 2, 3)), sums, 9)


def test_gradient_norms_of_the_dense_layer():
    got = run("lfi", True)
    errors = (ref.softmax(got["logits"]) - np.eye(3)[LABELS]) / 4
    pooled = got["attended"].mean((1, 2))
    printed(np.linalg.norm(errors.T @ pooled), 2.5236146378, 10)
    printed(np.linalg.norm(errors.sum(0)), 0.3387153514, 10)


def test_gradient_norm_of_the_last_shift_of_fin():
    """64 numbers, by central differences: through softmax, weighted sum and min-max."""
    whole, features = golden_net("lfi"), run("lfi", True)["features"]
    kernel, norm, _ = whole.fin[3]
    before = net.conv_norm(ref.masked_features(features, golden_image()), whole.fin[0], True)
    before = net.relu(net.conv_norm(before, whole.fin[1], True))
    before = net.conv(net.conv_norm(before, whole.fin[2], True), kernel)

    def loss(shift):
        pooled = net.relu(net.batch_norm(before, norm._replace(shift=shift), True)).mean((1, 2))
        attended = ref.attend(features, ref.attention_map(features, ref.softmax(pooled)))
        return ref.cross_entropy(net.dense(attended.mean((1, 2)), whole.dense), LABELS)

    printed(loss(norm.shift), 1.2632455908, 10)
    slopes = finite_difference(loss, norm.shift, step=1e-7)
    printed(np.linalg.norm(slopes), 0.0087689394, 8)


# Parameter counts


@pytest.mark.parametrize(
    ("depth", "classes", "width", "expected"),
    [
        (8, 10, 16, (78_042, 226_010, 136_750)),
        (20, 10, 16, (272_474, 420_442, 479_150)),
        (32, 10, 16, (466_906, 614_874, 821_550)),
        (44, 10, 16, (684_058, 3_045_402, 1_205_230)),
        (56, 10, 16, (869_530, 3_230_874, 1_531_502)),
        (110, 10, 16, (1_704_154, 4_065_498, 2_999_726)),
        (8, 100, 16, (83_892, 231_860, 159_250)),
        (20, 100, 16, (278_324, 426_292, 501_650)),
        (32, 100, 16, (472_756, 620_724, 844_050)),
        (44, 100, 16, (707_188, 3_068_532, 1_262_290)),
        (56, 100, 16, (892_660, 3_254_004, 1_588_562)),
        (110, 100, 16, (1_727_284, 4_088_628, 3_056_786)),
        (8, 10, 8, (19_954, 57_074, 35_078)),
        (8, 2, 8, (19_690, 56_810, 34_374)),
        (8, 20, 8, (20_284, 57_404, 36_138)),
        (20, 20, 16, (273_124, 421_092, 480_850)),
    ],
)
def test_parameters_on_cifar(depth, classes, width, expected):
    for kind, i in SIZES.items():
        assert count(ref.cifar_resnet, depth, classes, kind, width=width) == expected[i]


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "expected"),
    [
        ([2, 2, 2, 2], False, (11_689_512, 21_130_792, 21_607_266)),
        ([3, 4, 6, 3], False, (21_797_672, 31_238_952, 36_436_066)),
        ([3, 4, 6, 3], True, (25_557_032, 176_568_360, 43_584_866)),
        ([3, 4, 23, 3], True, (44_549_160, 195_560_488, 62_576_994)),
        ([3, 8, 36, 3], True, (60_192_808, 211_204_136, 78_220_642)),
    ],
)
def test_parameters_on_imagenet(blocks, bottleneck, expected):
    for kind, i in SIZES.items():

        def make(parameters):
            stem = parameters.conv_norm(3, 64, 7)
            ref.resnet(parameters, stem, 64, blocks, bottleneck, 1000, kind)

        assert count(make) == expected[i]


# Units


def test_grey_of_an_even_ratio_is_the_centre_of_each_cell():
    x = np.arange(1024.0).reshape(1, 32, 32, 1) + np.array([-3.0, 0, 3])
    close(ref.grey(x, (8, 8))[0, 0, :, 0], 49.5 + 4 * np.arange(8))
    image = np.random.default_rng(0).standard_normal((1, 224, 224, 3))
    cells = image.mean(3).reshape(14, 16, 14, 16)[:, 7:9, :, 7:9].mean((1, 3))
    close(ref.grey(image, (14, 14))[0, :, :, 0], cells, 1e-14)


ROWS = [
    ([0, 0, 0, 0], [0, 0, 0, 0]),
    ([1, 0, 3, 0], [1 / 3, 0, 1, 0]),
    ([2, 2, 2, 2], [1, 1, 1, 1]),
    ([1, 2, 3, 5], [0, 0.25, 0.5, 1]),
    ([-1, 0, 1, 3], [0, 0, 0.5, 1]),
]


def test_channel_min_max():
    features = np.array([row for row, _ in ROWS], float).T.reshape(1, 2, 2, 5)
    expected = np.array([unit for _, unit in ROWS]).T.reshape(1, 2, 2, 5)
    close(ref.channel_min_max(features), expected)


def test_channel_min_max_moves_with_its_minimum_and_maximum():
    slopes = finite_difference(lambda f: ref.unit_channel(f).sum(), ROWS[3][0])
    close(slopes, [-0.3125, 0.25, 0.25, -0.1875], 1e-7)


def test_masked_features_by_hand():
    """S = (1/3, 0, 1, 0), times the mean of the channels."""
    features = np.array([1, 0, 3, 0.0]).reshape(1, 2, 2, 1)
    image = np.array([3, 5, -6, 7.0]).reshape(1, 2, 2, 1) * np.array([1, 2, 0])
    close(ref.masked_features(features, image).ravel(), [1, 0, -6, 0])


def test_attention_by_hand():
    features = np.zeros((1, 2, 2, 3))
    features[0, :, :, 0], features[0, 0, 0, 1] = [[0, 1], [2, 4]], 4
    attention = ref.attention_map(features, np.array([[0.6, 0.25, 0.15]]))
    close(attention[0, :, :, 0], [[2 / 9, 0], [1 / 3, 1]])
    pooled = ref.attend(features, attention).mean((1, 2))
    close(pooled, [[35 / 12, 11 / 9, 0]])


def test_a_constant_sum_keeps_its_value():
    close(ref.attention_map(np.full((1, 2, 2, 2), 3.0), np.full((1, 2), 0.5)), 3)
    assert not ref.attention_map(-np.ones((1, 2, 2, 2)), np.full((1, 2), 0.5)).any()
    with pytest.raises(ValueError, match="one position"):
        ref.attention_map(np.ones((1, 1, 1, 2)), np.full((1, 2), 0.5))


def test_fin_by_hand():
    """One channel, kernels with a lone centre 2, -1, 3, 1, BN 1 / sqrt(1 + 1e-5) in evaluation."""
    kernels = [np.pad([[v]], 1)[:, :, None, None] for v in (2.0, -1.0, 3.0, 1.0)]
    layers = [(k, net.Norm(1.0, 0.5)) for k in kernels]
    x, r = np.array([1.0, -2.0]).reshape(1, 1, 2, 1), (1 + 1e-5) ** -0.5

    def affine(v, w):
        return w * v * r + 0.5

    paired, every = x, x
    for n, w in enumerate((2, -1, 3, 1)):
        every = np.maximum(affine(every, w), 0)
        paired = np.maximum(affine(paired, w), 0) if n % 2 else affine(paired, w)
    close(ref.fin(x, layers, False), paired)
    close(ref.fin(x, layers, False, "every"), every)
    assert np.abs(paired - every).max() > 1


def test_batch_norm_in_both_modes(rng):
    x = rng.standard_normal((3, 4, 5, 2)) * [2, 3] + [1, -1]
    norm = net.Norm(np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.ones(2), np.full(2, 4.0))
    got = net.batch_norm(x, norm, True)
    close(got.mean((0, 1, 2)), norm.shift)
    close(got.std((0, 1, 2)), norm.scale, 1e-5)
    close(net.batch_norm(x, norm, False), norm.scale * (x - 1) / 4.00001**0.5 + norm.shift)


def test_convolution_pads_both_sides_at_stride_2(rng):
    x, kernel = rng.standard_normal((1, 6, 7, 2)), rng.standard_normal((3, 3, 2, 4))
    got, padded = net.conv(x, kernel, 2), np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    assert got.shape == (1, 3, 4, 4)
    for i, j, o in np.ndindex(3, 4, 4):
        window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        close(got[0, i, j, o], (window * kernel[..., o]).sum())


# Laws


def test_importance_and_attention_have_their_ranges():
    for training in (False, True):
        w, a = run("lfi", training)["importance"], run("lfi", training)["attention"]
        assert (w >= 0).all()
        close(w.sum(1), 1)
        np.testing.assert_array_equal(a.min((1, 2, 3)), 0)
        np.testing.assert_array_equal(a.max((1, 2, 3)), 1)
        a = run("abn", training)["attention"]
        assert ((a > 0) & (a < 1)).all()


def test_evaluation_does_not_depend_on_the_batch():
    for kind, forward in (("lfi", ref.lfi_cam), ("abn", ref.abn)):
        alone = forward(golden_net(kind), golden_image()[2:3])
        for name, value in run(kind, False).items():
            close(alone[name][0], value[2], 1e-13)
    alone = ref.lfi_cam(golden_net("lfi"), golden_image()[2:3], True)["logits"]
    assert np.abs(alone[0] - run("lfi", True)["logits"][2]).max() > 0.01


def test_attention_off_is_the_baseline():
    whole, x = golden_net("lfi"), golden_image()
    got = ref.lfi_cam(whole, x, attention="off")
    np.testing.assert_array_equal(got["attended"], got["features"])
    close(got["logits"], got["features"].mean((1, 2)) @ whole.dense.w + whole.dense.b)
    baseline = ref.lfi_cam(whole._replace(fin=None), x, attention="off")
    np.testing.assert_array_equal(baseline["logits"], got["logits"])


def test_uniform_attention_is_the_mean_activation():
    got = ref.lfi_cam(golden_net("lfi"), golden_image(), attention="uniform")
    close(got["importance"], 1 / 64)
    mean = got["features"].mean(3)
    low, high = (f((1, 2))[:, None, None] for f in (mean.min, mean.max))
    close(got["attention"][..., 0], (mean - low) / (high - low))


def test_grad_cam_at_the_attended_maps():
    """= ReLU((1 + A) CAM_F) / (h w)."""
    got, dense = run("lfi", False), golden_net("lfi").dense
    for label in range(3):
        cam = (1 + got["attention"][..., 0]) * (got["features"] @ dense.w[:, label]) / 64
        gradient = np.broadcast_to(dense.w[:, label] / 64, (8, 8, 64))
        for image in range(4):
            close(grad_cam(got["attended"][image], gradient).map, cam[image])


def test_scale_and_order_of_the_maps(maps, rng):
    features, w, x = maps
    close(ref.channel_min_max(3 * features), ref.channel_min_max(features))
    close(ref.attention_map(3 * features, w), ref.attention_map(features, w))
    order = rng.permutation(6)
    close(ref.attention_map(features[..., order], w[:, order]), ref.attention_map(features, w))
    brighter = ref.masked_features(features, x + 2)
    close(brighter - ref.masked_features(features, x), 2 * ref.channel_min_max(features))


def test_degenerate_maps_are_finite(maps):
    features, _, x = maps
    features[0], features[1, :, :, 2], features[1, :, :, 3] = 0, 0, 2
    masked = ref.masked_features(features, x)
    assert np.isfinite(masked).all()
    assert not masked[0].any()
    close(masked[1, :, :, 3], ref.grey(x, (4, 5))[1, :, :, 0])
    flat = ref.lfi_cam(golden_net("lfi"), np.zeros((1, 32, 32, 3)))
    assert all(np.isfinite(value).all() for value in flat.values())


def test_sizes_that_do_not_divide():
    x = np.random.default_rng(0).standard_normal((1, 31, 45, 3))
    got = ref.lfi_cam(golden_net("lfi"), x)
    assert got["attention"].shape == (1, 8, 12, 1)
    assert ref.abn(golden_net("abn"), x)["attention"].shape == (1, 16, 23, 1)
    close(ref.grey(x, (8, 12))[0, :, :, 0], resize_bilinear(x[0].mean(2), (8, 12)))


# IoU of maps


def blob(row, column):
    i, j = np.indices((32, 32))
    return np.exp(-((i - row) ** 2 + (j - column) ** 2) / 50)


@pytest.mark.parametrize(
    ("first", "second", "rows", "images"),
    [
        ((16, 12), (16, 12), (1, 1), (1, 1)),
        ((16, 12), (16, 14), (0.867764, 0.871931), (0.684211, 0.695906)),
        ((16, 12), (16, 18), (0.706743, 0.710032), (0.291480, 0.300448)),
        ((4, 4), (27, 27), (0.3125, 0.3125), (0, 0)),
        ((8, 8), (24, 24), (0.1875, 0.1875), (0, 0)),
        ((8, 8), (8, 24), (0.593750, 0.593750), (0, 0)),
    ],
)
def test_iou_of_blobs(first, second, rows, images):
    a, b = blob(*first), blob(*second)
    for wrap, row, image in zip((True, False), rows, images, strict=True):
        printed(ref.iou_ref(a, b, wrap=wrap), row, 6)
        masks = [ref.reference_mask(m, wrap=wrap) for m in (a, b)]
        printed(ref.iou(*masks), image, 6)
    printed(ref.image_iou(a, b), images[1], 6)


def test_dice_of_equal_maps_passes_1():
    printed(ref.iou_ref(blob(16, 12), blob(16, 12), dice=True), 1.593750, 6)


def test_the_peak_wraps():
    peak = ref.reference_mask(blob(16, 12)), ref.reference_mask(blob(16, 12), wrap=False)
    assert [mask[16, 12].any() for mask in peak] == [False, True]
    assert (peak[0] ^ peak[1]).sum() == 3


def test_the_threshold_itself_is_below():
    written = np.array([[0, 100, 101, 255]]) / 255
    assert ref.reference_mask(written)[0, :, 0].tolist() == [False, False, True, False]
    assert ref.image_iou(np.array([[0, 100, 101, 256]]), np.array([[0, 0, 1, 1]])) == 1


def test_empty_maps():
    zeros = np.zeros((4, 4))
    assert ref.iou_ref(zeros, zeros) == 1
    assert ref.iou_ref(zeros, zeros, dice=True) == 2
    assert np.isnan(ref.image_iou(zeros, zeros))
    assert ref.image_iou(zeros, np.eye(4)) == 0
