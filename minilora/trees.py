"""Nested dicts and lists of arrays, as flat dicts keyed by dotted path, and the fingerprint of such a tree.

>>> tree = {"layers": [{"q_proj": {"weight": np.zeros((2, 3))}}]}
>>> list(leaves(tree))
['layers.0.q_proj.weight']
>>> nested(leaves(tree))["layers"][0]["q_proj"]["weight"].shape
(2, 3)
"""

import hashlib
from typing import Any

import numpy as np


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted path: leaf} in the order of the tree."""
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        path: leaf
        for key, child in items
        for path, leaf in leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def nested(flat: dict[str, Any]) -> Any:
    """The inverse of `leaves`. Keys that are all numbers become a list."""
    if list(flat) == [""]:
        return flat[""]
    children: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        head, _, rest = path.partition(".")
        children.setdefault(head, {})[rest] = leaf
    if all(key.isdigit() for key in children):
        return [nested(children[key]) for key in sorted(children, key=int)]
    return {key: nested(child) for key, child in children.items()}


def cast(tree: Any, dtype) -> Any:
    """A copy of the tree with every array in that dtype.

    >>> cast({"a": np.zeros(2)}, "float32")["a"].dtype
    dtype('float32')
    """
    return nested({path: np.array(leaf, dtype=dtype) for path, leaf in leaves(tree).items()})


def fingerprint(tree: Any) -> str:
    """SHA-256 of all paths, shapes, dtypes and bytes, independent of the order of the keys.

    >>> one, other = {"a": np.zeros(2), "b": np.ones(1)}, {"b": np.ones(1), "a": np.zeros(2)}
    >>> fingerprint(one) == fingerprint(other) != fingerprint({"a": np.zeros(2), "b": np.zeros(1)})
    True
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves(tree).items()):
        array = np.ascontiguousarray(leaf)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{path}|{array.shape}|{array.dtype.name}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
