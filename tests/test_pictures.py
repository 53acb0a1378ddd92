"""Pictures for networks that embed: Omniglot's zips, packed files, choosing and turning classes."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxfmi.train.pictures import Pictures, choose, disjoint, read, read_omniglot, rotations


def write(archive, name, array):
    Image.fromarray(array).convert("1").save(buffer := io.BytesIO(), "PNG")
    archive.writestr(name, buffer.getvalue())


@pytest.fixture
def drawings(tmp_path):
    """Two alphabets with three characters of two drawings: white paper, ink in the top left."""
    paper = np.full((21, 21), 255, np.uint8)
    paper[:7, :14] = 0
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/", "")
        for character in ("Greek/character02", "Latin/character01", "Greek/character01"):
            for number in (1, 2):
                write(archive, f"set/{character}/0001_{number:02}.png", paper)
    return tmp_path / "set.zip"


def test_ink_is_one_and_classes_are_characters(drawings):
    pictures = read(drawings, 3)
    assert pictures.names == ("Greek/character01", "Greek/character02", "Latin/character01")
    assert pictures.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pictures.images.dtype == np.uint8
    expected = np.zeros((3, 3), bool)
    expected[0, :2] = True
    ink = pictures.images[..., 0]  # made smaller with a filter that is wider than a pixel
    np.testing.assert_array_equal(ink > 127, np.broadcast_to(expected, (6, 3, 3)))
    assert (ink[:, 0, 0] > 200).all()
    assert (ink[:, 2] == 0).all()
    assert read(drawings).images.shape == (6, 28, 28, 1)


def test_what_is_no_set_of_pictures_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("set/readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"empty\.zip' has no drawings <set>/<alphabet>"):
        read_omniglot(tmp_path / "empty.zip")
    with pytest.raises(ValueError, match=r"packed \.npz or from Omniglot's \.zip, not 'a\.txt'"):
        read("a.txt")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.npz")


def test_choose_renumbers_and_disjoint_leaves_out_known_names():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    pictures = Pictures(images, np.array([0, 1, 2, 2, 1, 0]), ("a", "b", "c"))
    chosen = choose(pictures, (2, 0))
    assert chosen.images.ravel().tolist() == [0, 2, 3, 5]
    assert chosen.labels.tolist() == [1, 0, 0, 1]
    assert chosen.names == ("c", "a")
    assert disjoint(pictures, Pictures(images, images, ("b", "x"))).names == ("a", "c")
    with pytest.raises(ValueError, match=r"no pictures of classes \[3\]; there are 0 to 2"):
        choose(pictures, (1, 3))


def test_rotations_are_new_classes():
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    turned = rotations(Pictures(images, np.array([0, 1]), ("a", "b")))
    assert turned.labels.tolist() == list(range(8))
    np.testing.assert_array_equal(turned.images[2, ..., 0], np.rot90(images[0, ..., 0]))
    assert turned.names[:4] == ("a turned 0", "b turned 0", "a turned 90", "b turned 90")


def test_the_small_sets_of_omniglot_share_two_alphabets(shared):
    folder = shared / "data"
    first, second = (read(folder / f"omniglot_images_background_small{i}.zip", 7) for i in (1, 2))
    assert (len(first.names), len(second.names)) == (136, 156)
    new = disjoint(second, first)
    assert len(new.names) == 106
    assert not {n.split("/")[0] for n in new.names} & {"Latin", "Greek"}
