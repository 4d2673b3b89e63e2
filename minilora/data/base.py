"""The pretrained base that ships with minilora."""

from importlib.resources import as_file, files

from minilora.checkpoint import load_model
from minilora.checks import nearest
from minilora.model import Model

BASES = ("surnames", "surnames_4_layers")


def load_base(name: str = "surnames") -> Model:
    """The base of that name: its `.config` and `.params` (fresh arrays at every call).

    "surnames" (two layers) and "surnames_4_layers" were pretrained on census surnames by
    `python -m minilora.data.pretrain`; their folders state how, their validation loss, and their fingerprint, which is
    checked here.

    >>> base = load_base("surnames")
    >>> base.config.n_layers, base.params["layers"][0]["q_proj"]["weight"].shape
    (2, (32, 32))
    """
    if name not in BASES:
        raise ValueError(f"name: got {name!r}{nearest(name, BASES)}, takes one of {', '.join(map(repr, BASES))}")
    with as_file(files("minilora.data") / "bases" / name) as folder:
        return load_model(folder)
