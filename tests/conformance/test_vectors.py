"""The reference vectors: as the code makes them, as their schema says, and as a second computation finds them."""

import dataclasses
import json
import random
import shutil

import jsonschema
import numpy as np
import pytest

import minilora as ml
from minilora.conformance import make_vectors, vectors

from . import by_hand

NAMES = list(vectors.CONFIGS)
FOLDER = vectors.shipped()
SCHEMA = json.loads((FOLDER / "schema.json").read_text())


def hand(name):
    described = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = by_hand.read_safetensors(FOLDER / f"{name}.safetensors")
    return by_hand.Model(
        described, {key: one for key, one in arrays.items() if not key.startswith("expected.")}
    ), arrays


def test_every_vector_is_there_and_nothing_else():
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name}.{ending}" for name in NAMES for ending in ("json", "safetensors")} | {"schema.json"}


def test_every_field_of_the_config_is_set_by_a_vector():
    fields = {field.name for field in dataclasses.fields(ml.LoraConfig)}
    assert {name for config in vectors.CONFIGS.values() for name in config} == fields


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_what_the_code_makes(name):
    stored, made = vectors.load(name), vectors.make(name)
    for field in ("name", "modules", "scaling", "counts", "optimizer"):
        assert getattr(stored, field) == getattr(made, field)
    assert stored.expected.keys() == made.expected.keys()
    for key, one in made.expected.items():
        # Softmax ignores what all keys share, so the gradient of k's bias is rounding, which AdamW divides by 1e-8.
        gradient = made.expected.get(key.replace("trained", "gradient"), one)
        tolerance = 1e-8 if key.startswith("trained.") and np.abs(gradient).max() < 1e-12 else 1e-11
        np.testing.assert_allclose(stored.expected[key], one, rtol=0, atol=tolerance, err_msg=key)
    assert dict(stored.problem.config) == dict(made.problem.config)
    for part in ("base", "factors"):
        for key, one in getattr(made.problem, part).items():
            np.testing.assert_array_equal(getattr(stored.problem, part)[key], one)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_fit_their_schema(name):
    described = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.validate(described, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(described | {"format": 2}, SCHEMA)
    assert described["name"] == name


def test_the_command_makes_the_files(tmp_path, capsys):
    assert make_vectors.main(["--out", str(tmp_path)]) == 0
    assert f"{len(NAMES)} vectors written" in capsys.readouterr().out
    for name in NAMES:
        assert json.loads((tmp_path / f"{name}.json").read_text())["counts"] == vectors.load(name).counts
    assert vectors.read(tmp_path, NAMES[0]).name == NAMES[0]
    (tmp_path / "file").write_text("")
    assert make_vectors.main(["--out", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- a second witness ---


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_loss_by_hand(name):
    model, arrays = hand(name)
    tokens = by_hand.rows((model.shapes["tokens"], model.numbers["tokens"]))
    flat = [logit for sequence in tokens for row in model.logits(sequence) for logit in row]
    np.testing.assert_allclose(np.real(flat), arrays["expected.logits"][1], rtol=0, atol=1e-11)
    assert model.loss().real == pytest.approx(arrays["expected.loss"][1][0], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_merged_weights_by_hand(name):
    model, arrays = hand(name)
    for path in model.described["modules"]:
        expected = by_hand.rows(arrays[f"expected.merged.{path}.weight"])
        np.testing.assert_allclose(model.merged(path), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_hand(name):
    """Five numbers of each vector, drawn at random."""
    model, arrays = hand(name)
    places = [(key, i) for key in model.numbers if key.startswith("factor.") for i in range(len(model.numbers[key]))]
    for key, i in random.Random(name).sample(places, 5):
        expected = arrays[f"expected.gradient.{key.removeprefix('factor.')}"][1][i]
        assert model.derivative(key, i) == pytest.approx(expected, abs=1e-11), (key, i)


def test_trained_factors_by_hand():
    """All 48 factors of the vector with one adapted layer's two smallest modules, through all steps."""
    name = "first_layer"
    model, arrays = hand(name)
    optimizer = model.described["optimizer"]
    factors = {key: one for key, one in model.numbers.items() if key.startswith("factor.")}

    def gradients_of(numbers):
        return {key: [model.derivative(key, i) for i in range(len(one))] for key, one in numbers.items()}

    def rates(key):
        return optimizer["lr_A" if key.endswith("lora_A") else "lr_B"]

    settings = {key: optimizer[key] for key in ("steps", "weight_decay", "eps", "betas")}
    for key, one in by_hand.adamw(factors, gradients_of, rates, **settings).items():
        expected = arrays[f"expected.trained.{key.removeprefix('factor.')}"][1]
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_counts_by_hand(name):
    _, arrays = hand(name)
    described = json.loads((FOLDER / f"{name}.json").read_text())
    sizes = {key: len(flat) for key, (_, flat) in arrays.items()}
    factors = sum(n for key, n in sizes.items() if key.startswith("factor."))
    base = sum(n for key, n in sizes.items() if key.startswith("base."))
    trained_biases = sum(n for key, n in sizes.items() if key.startswith("factor.") and key.endswith(".bias"))
    assert described["counts"] == {"trainable": factors, "total": base + factors - trained_biases}


# --- damage ---


@pytest.fixture
def folder(tmp_path):
    for ending in ("json", "safetensors"):
        shutil.copy(FOLDER / f"alpha.{ending}", tmp_path / f"alpha.{ending}")
    return tmp_path


def _spoil_json(folder, change):
    path = folder / "alpha.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


DAMAGE = {
    "truncated": lambda folder: (folder / "alpha.safetensors").write_bytes(
        (FOLDER / "alpha.safetensors").read_bytes()[:-8]
    ),
    "another bit": lambda folder: (folder / "alpha.safetensors").write_bytes(
        (FOLDER / "alpha.safetensors").read_bytes()[:-1] + b"\x01"
    ),
    "no arrays": lambda folder: (folder / "alpha.safetensors").unlink(),
    "no description": lambda folder: (folder / "alpha.json").unlink(),
    "not json": lambda folder: (folder / "alpha.json").write_text("{"),
    "a list": lambda folder: (folder / "alpha.json").write_text("[]"),
    "another format": lambda folder: _spoil_json(folder, lambda one: one.update(format=9)),
    "no config": lambda folder: _spoil_json(folder, lambda one: one.pop("config")),
    "no hash": lambda folder: _spoil_json(folder, lambda one: one.pop("sha256")),
    "another scale": lambda folder: _spoil_json(folder, lambda one: one["scaling"].update({one["modules"][0]: 5})),
    "another alpha": lambda folder: _spoil_json(folder, lambda one: one["config"].update(lora_alpha=6)),
    "a module less": lambda folder: _spoil_json(folder, lambda one: one["modules"].pop()),
    "another count": lambda folder: _spoil_json(folder, lambda one: one["counts"].update(trainable=1)),
    "another model": lambda folder: _spoil_json(folder, lambda one: one["model"].update(n_heads=4)),
    "another optimizer": lambda folder: _spoil_json(folder, lambda one: one["optimizer"].update(momentum=1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_vector_is_one_clear_error(folder, damage):
    DAMAGE[damage](folder)
    with pytest.raises(ValueError, match=r"alpha\.json: ") as found:
        vectors.read(folder, "alpha")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one.expected.pop("logits"), "expected: lacks logits"),
        (lambda one: one.expected.update(loss=np.array([np.nan])), "loss: got float64, or numbers that are not finite"),
        (lambda one: one.expected.update(loss=np.float32([1])), "loss: got float32"),
        (
            lambda one: one.expected.pop(next(key for key in one.expected if "gradient" in key)),
            "expected.gradient: not",
        ),
        (lambda one: one.expected.update({"merged.head": np.ones(2)}), "expected.merged: has names"),
    ],
    ids=range(5),
)
def test_a_vector_that_would_not_be_read_is_not_written(change, says):
    vector = vectors.make("alpha")
    change(vector)
    with pytest.raises(ValueError, match=says):
        vectors.to_files(vector)


def test_a_vector_of_another_name_is_refused():
    with pytest.raises(ValueError, match="name: got 'beta', takes one of 'scale_of_1', 'alpha'"):
        vectors.make("beta")


def test_a_sound_vector_is_read(folder):
    assert vectors.read(folder, "alpha").modules == vectors.load("alpha").modules
