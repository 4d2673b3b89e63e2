"""The names that ship with minilora, as text and as tokens."""

import functools
from collections.abc import Iterable
from importlib.resources import files

import numpy as np

from minilora.checks import check_integer, check_one_of, nearest
from minilora.train import Dataset

BOUNDARY = 0  # begins and ends every name; the letters a-z are 1 ... 26
N_TOKENS = 27
CONTEXT = 16  # tokens; the longest shipped name has 13 letters
TABLES = {"surnames": "surnames.txt", "female": "female_first_names.txt", "male": "male_first_names.txt"}
N_VALIDATION = 1500  # names held out of a first-name table


@functools.cache
def load_names(table: str) -> tuple[str, ...]:
    """Names of the 1990 U.S. census, lower case, most frequent first: "surnames", "female" or "male".

    >>> load_names("female")[:3]
    ('mary', 'patricia', 'linda')
    """
    if table not in TABLES:
        raise ValueError(f"table: got {table!r}{nearest(table, TABLES)}, takes one of {', '.join(map(repr, TABLES))}")
    return tuple((files("minilora.data") / TABLES[table]).read_text(encoding="ascii").split())


def encode(names: Iterable[str], context_length: int = CONTEXT) -> Dataset:
    """Names as next-letter prediction; padding has nothing to predict (-1).

    >>> encode(["ab"], context_length=4)
    Dataset(inputs=array([[0, 1, 2, 0]]), targets=array([[ 1,  2,  0, -1]]))
    """
    if isinstance(names, str | bytes):
        raise ValueError(f"names: got {names!r}, takes a list of names")
    names = list(names)
    inputs = np.zeros((len(names), context_length), dtype=int)
    targets = np.full((len(names), context_length), -1)
    for row, name in enumerate(names):
        if not isinstance(name, str) or not (name.isascii() and name.isalpha() and name.islower()):
            raise ValueError(f"names: got {name!r}, takes names of the letters a-z")
        if len(name) >= context_length:
            raise ValueError(f"names: got {name!r}, takes at most {context_length - 1} letters")
        letters = [ord(letter) - ord("a") + 1 for letter in name]
        inputs[row, 1 : len(name) + 1] = letters
        targets[row, : len(name) + 1] = [*letters, BOUNDARY]
    return Dataset(inputs, targets)


def decode(tokens: np.ndarray) -> list[str]:
    """Rows of tokens as names, each up to its first boundary.

    >>> decode(np.array([[1, 2, 0, 0], [26, 0, 0, 0]]))
    ['ab', 'z']
    """
    texts = ("".join(chr(ord("a") + token - 1) if token else " " for token in row) for row in tokens)
    return [text.split(" ")[0] for text in texts]


def names_task(table: str, n_train: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """(train, validation) of a first-name table: `n_train` names (None: all that are not held out), and those held out.

    1,500 female names are held out, and half of the male ones. Both sets are
    drawn by the seed, so that runs with the same seed are paired.

    >>> train, validation = names_task("female", 200, seed=0)
    >>> len(train.inputs), len(validation.inputs)
    (200, 1500)
    """
    check_one_of("table", table, ("female", "male"))
    check_integer("seed", seed, at_least=0)
    names = np.array(load_names(table))
    n_validation = min(N_VALIDATION, len(names) // 2)
    if n_train is not None:
        check_integer("n_train", n_train, at_least=1)
        if n_train > len(names) - n_validation:
            raise ValueError(
                f"n_train: got {n_train}, takes at most the {len(names) - n_validation} names of {table!r}"
            )
    order = np.random.default_rng(seed).permutation(len(names))
    held_out, rest = order[:n_validation], order[n_validation:]
    return encode(names[rest[:n_train]]), encode(names[held_out])


def surname_split() -> tuple[Dataset, Dataset]:
    """(train, validation) for pretraining: surnames that are no first names; the same 2,000 of them are held out."""
    first_names = set(load_names("female")) | set(load_names("male"))
    names = np.array([name for name in load_names("surnames") if name not in first_names])
    order = np.random.default_rng(1990).permutation(len(names))
    return encode(names[order[2000:]]), encode(names[order[:2000]])
