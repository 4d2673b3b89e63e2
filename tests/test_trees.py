"""Trees and flat dicts, and that a fingerprint sees every change and nothing else."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.trees import cast, fingerprint, leaves, nested

names = st.text("abcxyz_", min_size=1, max_size=5)
trees = st.recursive(
    st.integers(),
    lambda children: (
        st.dictionaries(names, children, min_size=1, max_size=3) | st.lists(children, min_size=1, max_size=13)
    ),
    max_leaves=30,
)


@given(tree=trees)
def test_nested_is_the_inverse_of_leaves(tree):
    """Lists of more than ten among them, whose indices do not sort as text."""
    assert nested(leaves(tree)) == tree


@given(tree=trees)
def test_leaves_are_at_their_paths(tree):
    for path, leaf in leaves(tree).items():
        found = tree
        for key in path.split(".") if path else ():
            found = found[int(key) if isinstance(found, list) else key]
        assert found is leaf


def test_leaves_come_in_the_order_of_the_tree():
    assert list(leaves({"b": [1, {"c": 2}], "a": 3})) == ["b.0", "b.1.c", "a"]


def test_a_list_survives_a_shuffled_flat_dict():
    flat = leaves({"layers": list(range(11))})
    assert nested({path: flat[path] for path in sorted(flat, reverse=True)}) == {"layers": list(range(11))}


def small_tree():
    rng = np.random.default_rng(0)
    return {"layers": [{"q": rng.standard_normal((3, 5))}, {"q": rng.standard_normal((3, 5))}], "norm": np.ones(7)}


def test_cast_copies_in_the_dtype():
    tree = small_tree()
    for dtype in ("float32", "float64"):
        copy = cast(tree, dtype)
        assert {array.dtype for array in leaves(copy).values()} == {np.dtype(dtype)}
        for path, array in leaves(copy).items():
            assert not np.shares_memory(array, leaves(tree)[path])
            np.testing.assert_array_equal(array, leaves(tree)[path].astype(dtype))


def test_fingerprint_of_a_tree_written_out():
    """Saved models and adapters hold fingerprints, so what they mean must never change."""
    written = (
        b"a.0|(2,)|float32|" + np.array([1, 2], "<f4").tobytes() + b"b|(1, 1)|float64|" + np.array([3], "<f8").tobytes()
    )
    tree = {"b": np.full((1, 1), 3.0), "a": [np.array([1, 2], "float32")]}
    assert fingerprint(tree) == hashlib.sha256(written).hexdigest()


def change_one_bit(tree):
    tree["layers"][1]["q"].view("uint64")[2, 4] ^= 1


def swap_layers(tree):
    tree["layers"].reverse()


def transpose(tree):
    tree["layers"][0]["q"] = tree["layers"][0]["q"].T


def reshape(tree):
    tree["layers"][0]["q"] = tree["layers"][0]["q"].reshape(5, 3)


def narrow(tree):
    tree["norm"] = tree["norm"].astype("float32")


def rename(tree):
    tree["norms"] = tree.pop("norm")


def drop(tree):
    del tree["norm"]


@pytest.mark.parametrize("change", [change_one_bit, swap_layers, transpose, reshape, narrow, rename, drop])
def test_fingerprint_sees(change):
    tree = small_tree()
    change(tree)
    assert fingerprint(tree) != fingerprint(small_tree())


def test_fingerprint_sees_the_sign_of_zero():
    """It is of the bytes: equal fingerprints mean bit-equal results."""
    zero, minus_zero = {"a": np.array([0.0])}, {"a": np.array([-0.0])}
    assert fingerprint(zero) != fingerprint(minus_zero)


@pytest.mark.parametrize(
    "same",
    [
        lambda array: np.asfortranarray(array),
        lambda array: np.repeat(array, 2, axis=0)[::2],
        lambda array: array.astype(">f8"),
        lambda array: array.copy(),
    ],
    ids=["column by column", "strided", "big-endian", "copied"],
)
def test_fingerprint_does_not_see_the_layout_in_memory(same):
    tree = nested({path: same(array) for path, array in leaves(small_tree()).items()})
    assert fingerprint(tree) == fingerprint(small_tree())


def test_fingerprint_does_not_see_the_order_of_keys():
    tree = small_tree()
    assert fingerprint({"norm": tree["norm"], "layers": tree["layers"]}) == fingerprint(tree)
