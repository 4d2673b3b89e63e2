"""Files from strangers: every loader ends in a clear error or in what it should, never in anything else.

`python tests/test_fuzz.py N` does N mutated files a loader and prints a table.
"""

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minilora as ml
from minilora.conformance import vectors
from minilora.experiments.evidence.runs import from_csv
from minilora.experiments.pages.folder import read_claims
from minilora.files import from_json

SMALL = ml.ModelConfig(vocab_size=5, context_length=4, d_model=4, n_heads=2, n_layers=2, d_ff=6)
FIGURES = Path(__file__).parents[1] / "figures" / "quick"
SECONDS = 5.0  # that one file may take; it takes a thousandth of that
MEMORY = 200_000  # kB by which the process may grow, whatever sizes a header claims; it grows by a few thousand


def model_folder(folder: Path) -> None:
    ml.save_model(ml.Model(SMALL, ml.init_params(SMALL, np.random.default_rng(0))), folder)


def adapter_folder(folder: Path) -> None:
    params = ml.init_params(SMALL, np.random.default_rng(0))
    ml.save_adapter(ml.init_adapter(params, ml.LoraConfig(r=2), np.random.default_rng(0)), folder)


def opt_folder(folder: Path) -> None:
    from test_opt import make_model, opt_arrays, opt_config, write_folder

    write_folder(folder, opt_arrays(make_model(SMALL).params), opt_config(SMALL))


def vector_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("json", "safetensors"):
        (folder / f"alpha.{ending}").write_bytes((vectors.shipped() / f"alpha.{ending}").read_bytes())


def claims_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.json").write_bytes((FIGURES / "claims.json").read_bytes())


def csv_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = (FIGURES / "alpha.csv").read_text().splitlines(keepends=True)
    (folder / "runs.csv").write_text("".join(text[:9]))  # two runs


LOADERS = {  # name -> (make a sound folder, load it)
    "load_model": (model_folder, ml.load_model),
    "load_adapter": (adapter_folder, ml.load_adapter),
    "load_opt": (opt_folder, ml.load_opt),
    "vectors.read": (vector_folder, lambda folder: vectors.read(folder, "alpha")),
    "read_claims": (claims_folder, read_claims),
    "from_csv": (csv_folder, lambda folder: from_csv((folder / "runs.csv").read_text(encoding="utf-8"))),
}  # fmt: skip
EVIL = [
    b"\x00",
    b"\xff",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-1",
    b"99999999999999999999",
    b'"',
    b"{",
    b"]",
    b"../../",
    b"null",
    b"true",
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, or replaced by what parsers dislike."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.5 else rng.randrange(min(len(out), 400) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[min(place, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[place : place + rng.choice([1, 8, 64])]
        elif kind == 2:
            out[place:place] = rng.choice(EVIL)
        elif kind == 3:
            out[place:place] = out[place : place + rng.choice([1, 16, 256])]
        elif kind == 4:
            del out[place:]
        else:
            out[place : place + 8] = rng.randbytes(8)
    return bytes(out)


def fuzz(name: str, n: int, seed: int) -> dict[str, int]:
    """What came of n mutated files: loaded, or refused with a clear error; anything else raises."""
    make, load = LOADERS[name]
    rng, found = random.Random(seed), {"loaded": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        make(folder)
        sound = {path: path.read_bytes() for path in folder.iterdir()}
        load(folder)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(n):
            path = rng.choice(list(sound))
            path.write_bytes(mutated(sound[path], rng))
            begin = time.monotonic()
            try:
                load(folder)
                found["loaded"] += 1
                said = "loaded"
            except (ValueError, FileNotFoundError) as error:
                found["refused"] += 1
                said = str(error)
            assert 0 < len(said) < 2000, f"one clear message, not {said[:300]}"
            assert time.monotonic() - begin < SECONDS
            path.write_bytes(sound[path])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
        assert {path.name for path in Path(parent).iterdir()} == {"folder"}, "nothing was written elsewhere"
    return found


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_files_end_in_a_clear_error(name):
    found = fuzz(name, 300, seed=0)
    assert found["refused"] > 50


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, '{"a": 1, "a": 2}', '{"a": NaN}', "\ufeff{}"]
)
def test_absurd_json_is_a_value_error(text):
    try:
        from_json(text)
    except ValueError:
        return
    assert text.isdigit(), "a long number is JSON"


def test_absurd_sizes_in_a_header_take_no_memory(tmp_path):
    """A header that claims a terabyte."""
    adapter_folder(tmp_path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ml.load_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes((10**15).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ml.load_adapter(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(tmp_path, bad):
    adapter_folder(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    arrays[min(arrays)][0, 0] = bad
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ml.load_adapter(tmp_path)


if __name__ == "__main__":
    for one in LOADERS:
        print(one, fuzz(one, int(sys.argv[1]), seed=1), flush=True)
