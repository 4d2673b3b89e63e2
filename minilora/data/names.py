"""The names that ship with minilora, as text and as tokens."""

import functools
from collections.abc import Iterable
from importlib.resources import files

import numpy as np

from minilora.checks import check_integer, check_kind, check_one_of, nearest
from minilora.dataset import Dataset
from minilora.model import Model

BOUNDARY = 0  # begins and ends every name; the letters a-z are 1 ... 26
N_TOKENS = 27
CONTEXT = 16  # tokens; the longest shipped name has 13 letters
TABLES = {"surnames": "surnames.txt", "female": "female_first_names.txt", "male": "male_first_names.txt"}
N_VALIDATION = 1500  # names held out of a first-name table


def load_names(table: str) -> tuple[str, ...]:
    """Names of the 1990 U.S. census, lower case, most frequent first: "surnames", "female" or "male".

    ValueError for another table.

    >>> load_names("female")[:3]
    ('mary', 'patricia', 'linda')
    """
    if table not in list(TABLES):  # a list takes what cannot be hashed
        raise ValueError(f"table: got {table!r}{nearest(table, TABLES)}, takes one of {', '.join(map(repr, TABLES))}")
    return _read(table)


@functools.cache
def _read(table: str) -> tuple[str, ...]:
    return tuple((files("minilora.data") / TABLES[table]).read_text(encoding="ascii").split())


def encode(names: Iterable[str], context_length: int = CONTEXT) -> Dataset:
    """Names as next-letter prediction; padding has nothing to predict (-1).

    ValueError for what is no name of the letters a-z, or too long for the context.

    >>> encode(["ab"], context_length=4)
    Dataset(inputs=array([[0, 1, 2, 0]]), targets=array([[ 1,  2,  0, -1]]))
    """
    if isinstance(names, str | bytes):
        raise ValueError(f"names: got {names!r}, takes a list of names")
    check_kind("names", names, Iterable, "a list of names")
    check_integer("context_length", context_length, at_least=1)
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
    """Rows of tokens as names, each up to its first boundary. ValueError for tokens that are no letters.

    >>> decode(np.array([[1, 2, 0, 0], [26, 0, 0, 0]]))
    ['ab', 'z']
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens: got {tokens.dtype} of shape {tokens.shape}, takes integers (names, tokens)")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < N_TOKENS:
        raise ValueError(f"tokens: got {tokens.min()} ... {tokens.max()}, takes 0 ... {N_TOKENS - 1}")
    texts = ("".join(chr(ord("a") + token - 1) if token else " " for token in row) for row in tokens)
    return [text.split(" ")[0] for text in texts]


def check_letters(name: str, model: Model) -> None:
    """ValueError unless the model's tokens are these: an 'a' is 1, and there is nothing after 'z'."""
    if model.config.vocab_size != N_TOKENS:
        takes = f"{N_TOKENS}, the boundary and the letters a-z"
        raise ValueError(f"{name}: got vocab_size = {model.config.vocab_size}, takes {takes}")


def names_task(table: str, n_train: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """(train, validation) of a first-name table: `n_train` names (None: all that are not held out), and those held out.

    1,500 female names are held out, and half of the male ones. Both sets are
    drawn by the seed, so that runs with the same seed are paired. ValueError for a number that is not there.

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
