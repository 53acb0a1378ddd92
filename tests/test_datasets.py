"""Data sets: every form gives its samples, and every wrong row says which it is."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxfmi.command import datasets
from jaxfmi.command.datasets import label_offset, open_data, shift, to_region


def jpeg(size=(10, 20), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def indexed(folder, rows, columns="file,class_index,boxes"):
    folder.mkdir(exist_ok=True)
    (folder / "index.csv").write_text("\n".join([columns, *rows]) + "\n")
    for row in rows:
        if name := row.split(",")[0]:
            (folder / name).write_bytes(jpeg())
    return folder


def packed(path, labels=(3, 1), boxes=None, broken=()):
    files = [b"junk" if i in broken else jpeg(seed=i) for i in range(len(labels))]
    offsets = np.cumsum([0, *map(len, files)])
    blob = np.frombuffer(b"".join(files), np.uint8)
    arrays = {"blob": blob, "offsets": offsets, "labels": np.array(labels, np.int16)}
    if boxes is not None:
        arrays["boxes"] = np.array(boxes, np.int16)
    np.savez(path, allow_pickle=False, **arrays)
    return path


def test_an_index_with_fractions(tmp_path):
    data = open_data(indexed(tmp_path / "set", ["a.png,4,0:0:.5:1 .5:.25:1:1", "b.png,2,"]))
    one, two = data.samples
    assert (one.name, one.label, two.label) == ("a.png", 4, 2)
    assert one.boxes == ((0, 0, 0.5, 1), (0.5, 0.25, 1, 1))
    assert two.boxes == ()
    assert one.open().size == (20, 10)
    assert data.card["images"] == 2


def test_an_index_with_pixels(tmp_path):
    folder = indexed(tmp_path / "set", ["a.png,4,20,10,0:5:9:9"], "file,class_index,w,h,boxes")
    (sample,) = open_data(folder).samples
    assert sample.boxes == ((0, 0.5, 0.5, 1),)


def test_a_packed_file(tmp_path):
    path = packed(tmp_path / "set.npz", boxes=[(0, 0, 19, 9), (10, 5, 10, 5)])
    one, two = open_data(path).samples
    assert (one.label, two.label) == (3, 1)
    assert one.boxes == ((0, 0, 1, 1),)
    assert two.boxes == ((0.5, 0.5, 0.55, 0.6),)
    np.testing.assert_array_equal(two.open(), Image.open(io.BytesIO(jpeg(seed=1))))
    assert open_data(packed(tmp_path / "plain.npz")).samples[0].boxes == ()


@pytest.mark.parametrize(
    ("folders", "labels"), [(("cat", "ant"), [0, 1]), (("7", "10"), [10, 7]), (("7", "a"), [0, 1])]
)
def test_class_folders(tmp_path, folders, labels):
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(jpeg())
        (tmp_path / folder / "notes.txt").touch()
    data = open_data(tmp_path)
    assert [s.label for s in data.samples] == labels
    assert [s.name for s in data.samples] == [f"{f}/x.png" for f in sorted(folders)]


@pytest.mark.parametrize(
    ("every", "limit", "taken"),
    [(1, None, [0, 1, 2, 3, 4]), (2, None, [0, 2, 4]), (2, 2, [0, 2]), (1, 3, [0, 1, 2])],
)
def test_a_part_of_the_data(tmp_path, every, limit, taken):
    path = packed(tmp_path / "set.npz", labels=range(5))
    assert [s.label for s in open_data(path, every=every, limit=limit).samples] == taken


def test_a_broken_picture_is_found_when_it_is_read(tmp_path):
    path = packed(tmp_path / "set.npz", boxes=[(0, 0, 1, 1)] * 2, broken=[1])
    sample = open_data(path).samples[1]
    with pytest.raises(ValueError, match=r"cannot read '.*set.npz, picture 1'"):
        sample.open()
    indexed(tmp_path / "set", ["a.png,0,"])
    (tmp_path / "set" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read '.*a.png'"):
        open_data(tmp_path / "set").samples[0].open()


def test_boxes_of_a_packed_file_need_headers_of_what_is_taken(tmp_path, monkeypatch):
    path = packed(tmp_path / "set.npz", range(4), [(0, 0, 19, 9), (0, 0, 20, 9)] * 2)
    monkeypatch.setattr(datasets, "to_rgb", None)
    boxes = [sample.boxes for sample in open_data(path, every=2, limit=2).samples]
    assert boxes == [((0, 0, 1, 1),)] * 2


def test_boxes_are_in_the_upright_picture(tmp_path, monkeypatch):
    stream, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 10)).save(stream, "JPEG", exif=tags)
    monkeypatch.setitem(globals(), "jpeg", lambda seed: stream.getvalue())
    (sample,) = open_data(packed(tmp_path / "set.npz", [0], [(0, 0, 9, 19)])).samples
    assert sample.open().size == (10, 20)
    assert sample.boxes == ((0, 0, 1, 1),)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a.png,1,0:0:1.2:1", r"line 2: .*not inside the picture: \(0.0, 0.0, 1.2, 1.0\)"),
        ("a.png,1,.5:0:.5:1", "line 2: .*empty"),
        ("a.png,1,.5:0:nan:1", "line 2: .*empty"),
        ("a.png,1,.5:0:1", "line 2: a box is x1:y1:x2:y2"),
        ("a.png,1,a:0:1:1", "line 2: could not convert"),
        ("a.png,cat,", "line 2: invalid literal"),
        (",1,", "line 2: no file"),
        ("a.png", "line 2: int"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, why):
    with pytest.raises(ValueError, match=why):
        open_data(indexed(tmp_path / "set", [row]))


def test_a_wrong_box_of_a_packed_file_is_named(tmp_path):
    path = packed(tmp_path / "set.npz", boxes=[(0, 0, 19, 9), (0, 0, 20, 9)])
    with pytest.raises(ValueError, match=r"picture 1: .* in pixels of 20x10 .*\(0, 0, 20, 9\)"):
        open_data(path)


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; data is a folder with index.csv"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no picture"):
        open_data(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match="is none of these"):
        open_data(tmp_path / "a.txt")
    np.savez(tmp_path / "a.npz", blob=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="lacks labels, offsets"):
        open_data(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", blob=np.zeros(3), offsets=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(ValueError, match="3 labels, but other numbers"):
        open_data(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="lacks the column class_index"):
        open_data(indexed(tmp_path / "set", ["a.png"], "file"))


@pytest.mark.parametrize("left", [0, 7, 400, -30])
def test_a_truncated_packed_file_is_named(tmp_path, left):
    path = packed(tmp_path / "set.npz")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"cannot read '.*set\.npz'"):
        open_data(path)


def test_labels_are_moved_and_checked(tmp_path):
    assert [label_offset(None, n) for n in (1000, 1001, 1002)] == [0, 1, 0]
    assert label_offset(0, 1001) == 0
    data = open_data(packed(tmp_path / "set.npz"))
    assert [s.label for s in shift(data, 1, 5).samples] == [4, 2]
    with pytest.raises(ValueError, match=r"'0' .* class 3; the network has 0 to 2; --label-offset"):
        shift(data, 0, 3)
    with pytest.raises(ValueError, match=r"'1' .* class -1 \(with the offset -2\)"):
        shift(data, -2, 5)


def test_equal_data_has_an_equal_card(tmp_path):
    one = open_data(packed(tmp_path / "one.npz", boxes=[(0, 0, 1, 1)] * 2))
    assert one.card == open_data(tmp_path / "one.npz").card
    other = open_data(packed(tmp_path / "one.npz", boxes=[(0, 0, 1, 2)] * 2))
    assert one.card["sha256"] != other.card["sha256"]


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 0, 1, 1), (0, 50), (0, 100)),
        ((0.28, 0.28, 0.56, 0.56), (14, 28), (28, 56)),
        ((0.001, 0.019, 0.011, 0.021), (0, 2), (0, 2)),
        ((0.5, 0.5, 0.501, 0.501), (25, 26), (50, 51)),
    ],
)
def test_boxes_are_rounded_outward(box, rows, columns):
    mask = to_region([box], (50, 100))
    expected = np.zeros((50, 100), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(mask, expected)


def test_regions_are_unions():
    mask = to_region([(0, 0, 0.5, 1), (0.25, 0, 0.75, 0.5)], (4, 8))
    assert mask.sum() == 16 + 4
    assert not to_region([], (4, 8)).any()


def test_the_real_sets_open(shared):
    data = shared / "data"
    assert len(open_data(data / "imagenet_val").samples) == 400
    assert len(open_data(data / "imagenet_original").samples) == 12
    assert open_data(data / "tiny_imagenet20_val.npz", limit=3).samples[0].boxes
    assert not open_data(data / "cifar10_jpeg_test.npz", limit=3).samples[0].boxes
