"""`tutorials/micro_lora.py` computes what the package computes, stays one short file, and is where the chapters say."""

import ast
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.train import Dataset, Trainable
from minilora.trees import cast, leaves

TUTORIALS = Path(__file__).parents[2] / "tutorials"
PATH = TUTORIALS / "micro_lora.py"
SOURCE = PATH.read_text(encoding="utf-8")
LINES = SOURCE.splitlines()
TREE = ast.parse(SOURCE)
DEFINED = {node.name: (node.lineno, node.end_lineno) for node in TREE.body if isinstance(node, ast.FunctionDef)}
PAGES = sorted([*TUTORIALS.glob("[0-9][0-9]_*.md"), TUTORIALS / "README.md"])


def module_of(source: str):
    """The file as a module; what it sets in the environment is for a process of its own."""
    module = types.ModuleType("micro_lora")
    module.__file__ = str(PATH)
    with mock.patch.dict(os.environ):
        exec(compile(source, str(PATH), "exec"), module.__dict__)
    return module


MICRO = module_of(SOURCE)


# --- the same numbers ---


def shipped() -> ml.Model:
    """The base in double precision."""
    base = ml.load_base("surnames")
    return ml.Model(ml.ModelConfig(**(vars(base.config) | {"dtype": "float64"})), cast(base.params, "float64"))


def random_model() -> ml.Model:
    """Every array random, biases and layer norms too, and no two sizes equal, so that no transposed array fits."""
    config = ml.ModelConfig(
        vocab_size=13, context_length=7, d_model=10, n_heads=2, n_layers=3, d_ff=11, dtype="float64"
    )
    rng = np.random.default_rng(5)
    start = leaves(ml.init_params(config, rng))
    moved = {path: array + 0.3 * rng.standard_normal(array.shape) for path, array in start.items()}
    return ml.Model(config, ml.trees.nested(moved))


MODELS = {"shipped": shipped(), "random": random_model()}
ALL_SIX = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CASES = {
    "q and v": ("shipped", ["q_proj", "v_proj"], [0, 1], 0.0),
    "all six, dropout": ("shipped", ALL_SIX, [0, 1], 0.3),
    "the MLP of one layer": ("random", ["up_proj", "down_proj"], [1], 0.0),
    "k and o, dropout": ("random", ["k_proj", "o_proj"], [0, 2], 0.5),
    "all six everywhere": ("random", ALL_SIX, [0, 1, 2], 0.0),
}


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def hold_to_the_package(micro, case: str) -> None:
    """AssertionError unless loss, gradients, dropout, AdamW and merging are the package's, on random factors."""
    name, targets, layers, dropout = CASES[case]
    model, rng = MODELS[name], np.random.default_rng(7)
    settings = {"r": 3, "lora_alpha": 5, "lora_dropout": dropout, "target_modules": targets}
    lora = ml.LoraConfig(**settings, layers_to_transform=layers)
    fresh = ml.init_adapter(model.params, lora, rng)
    adapter = fresh.with_arrays({path: 0.3 * rng.standard_normal(one.shape) for path, one in fresh.arrays().items()})
    factors, config = adapter.arrays(), vars(model.config) | settings
    params = {path: array.copy() for path, array in leaves(model.params).items()}
    inputs = rng.integers(0, model.config.vocab_size, (5, model.config.context_length - 1))
    targets = np.where(rng.random(inputs.shape) < 0.7, rng.integers(0, model.config.vocab_size, inputs.shape), -1)

    logits, _ = micro.forward(params, factors, inputs, config)
    same(logits, ml.forward(model.params, inputs, model.config, adapter=adapter))
    assert np.abs(logits - ml.forward(model.params, inputs, model.config)).max() > 0.01, "the factors do something"

    trainable = Trainable(model, adapter)
    loss, gradient = trainable.loss_and_gradient(trainable.vector, Dataset(inputs, targets), np.random.default_rng(11))
    logits, back = micro.forward(params, factors, inputs, config, np.random.default_rng(11))
    mine, g = micro.cross_entropy(logits, targets)
    gradients = back(g)
    same(mine, loss)
    expected = trainable.arrays(gradient)
    assert gradients.keys() == expected.keys()
    for path, one in gradients.items():
        assert np.abs(one).max() > 1e-5
        same(one, expected[path])

    adamw, means = ml.AdamW(learning_rate=0.02, weight_decay=0.3), {}
    state, vector, moved = adamw.init(trainable.vector), trainable.vector, factors
    for step in (1, 2, 3):
        factor = (-0.5) ** step  # so that the steps have other gradients
        moved, means = micro.adamw(
            moved, {path: factor * one for path, one in gradients.items()}, means, step, 0.02, weight_decay=0.3
        )
        vector, state = adamw.update(vector, factor * gradient, state)
    same(trainable.flat(moved), vector)

    merged, theirs = micro.merge(params, factors, config), ml.merge(model.params, adapter)
    assert merged.keys() == params.keys()
    for path, array in leaves(theirs).items():
        same(merged[path], array)
    for path, array in leaves(model.params).items():
        np.testing.assert_array_equal(params[path], array, err_msg="the base is not written to")
    same(micro.forward(merged, {}, inputs, config)[0], ml.forward(theirs, inputs, model.config))


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_package_computes(case):
    hold_to_the_package(MICRO, case)


MUTANTS = {
    "a wrong sign in the backward pass of softmax": ("(dP - (dP * P)", "(dP + (dP * P)"),
    "the scale is missing in the gradient of A": ("h = scale * (g @ B)", "h = g @ B"),
    "the gradient of the residual stream is dropped": ("return g + back_norm(", "return back_norm("),
    "a letter sees the next one": ("np.tri(n_tokens, dtype=bool)", "np.tri(n_tokens, k=1, dtype=bool)"),
    "the mask is forgotten on the way back": ("(h @ A) * mask", "h @ A"),
    "padding counts": (") * counted / n", ") / n"),
    "decay through the quotient": ("m, v = means.get(name, (0.0, 0.0))", "m, v = means.get(name, (0.0, 0.0)); "
                                   "g = g + weight_decay * lora[name]"),
    "merging writes to the base": ('params[f"{path}.weight"] + config', 'params[f"{path}.weight"]; '
                                   'merged[f"{path}.weight"] += config'),
    "merged without alpha / r": ('config["lora_alpha"] / len(A) * (B @ A)', "B @ A"),
}  # fmt: skip


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_noticed(bug):
    right, wrong = MUTANTS[bug]
    assert SOURCE.count(right) == 1, "the source has moved on: mend the mutant"
    with pytest.raises(AssertionError):
        hold_to_the_package(module_of(SOURCE.replace(right, wrong)), "all six, dropout")


# --- the same data, start and names ---


def test_it_reads_the_base_bit_for_bit_and_cannot_write_to_it():
    config, params = MICRO.load_base(MICRO.DATA / "bases" / "surnames")
    base = ml.load_base("surnames")
    expected = leaves(base.params)
    assert params.keys() == expected.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(array, expected[path])
        assert array.dtype == "float32"
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    assert {name: config[name] for name in vars(base.config)} == vars(base.config)


def test_it_encodes_as_the_package_does():
    names = ["ann", "mcculloch", "b"]
    for found, expected in zip(MICRO.encode(names, 16), ml.encode(names), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_it_starts_as_the_package_does():
    model, rngs = MODELS["shipped"], [np.random.default_rng(3) for _ in range(2)]
    lora = MICRO.LORA | {"target_modules": ALL_SIX}
    found = MICRO.init_lora(leaves(model.params), lora, rngs[0])
    adapter = ml.init_adapter(model.params, ml.LoraConfig(**lora), rngs[1])
    assert found.keys() == adapter.arrays().keys()
    for path, expected in adapter.arrays().items():
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-15)


def test_a_name_that_no_module_has_is_an_error():
    with pytest.raises(KeyError, match=r"layers\.0\.query\.weight"):
        MICRO.init_lora(leaves(MODELS["shipped"].params), MICRO.LORA | {"target_modules": ["query"]}, None)


def test_its_dropout_mask_is_the_package_s():
    x = np.zeros((40, 30))
    found, expected = (draw(np.random.default_rng(2)) for draw in (
        lambda rng: MICRO.dropout_mask(x, 0.3, rng),
        lambda rng: ops.dropout_mask(x.shape, 0.3, rng, x.dtype),
    ))  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert 0 < (found == 0).mean() < 1


def test_it_writes_the_names_that_the_package_writes():
    model = MODELS["shipped"]
    found = MICRO.sample(leaves(model.params), {}, vars(model.config), 20, np.random.default_rng(4))
    assert found == ml.sample_names(model, 20, np.random.default_rng(4))


def test_single_precision_stays_single():
    config, params = MICRO.load_base(MICRO.DATA / "bases" / "surnames")
    config |= MICRO.LORA
    rng = np.random.default_rng(0)
    lora = MICRO.init_lora(params, config, rng)
    inputs, targets = MICRO.encode(["ann", "mary"], config["context_length"])
    logits, back = MICRO.forward(params, lora, inputs, config, rng)
    loss, g = MICRO.cross_entropy(logits, targets)
    lora, means = MICRO.adamw(lora, back(g), {}, 1, 1e-2)
    arrays = [logits, loss, g, *lora.values(), *back(g).values(), *MICRO.merge(params, lora, config).values()]
    assert {one.dtype.name for one in [*arrays, *(one for pair in means.values() for one in pair)]} == {"float32"}


# --- one short file ---


def test_it_has_at_most_200_lines_and_imports_numpy_and_the_standard_library_alone():
    assert len(LINES) <= 200
    imported = {alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in imported
    assert imported - {"numpy"} <= sys.stdlib_module_names
    assert "__import__" not in SOURCE


def test_a_sentence_stands_before_each_part_and_a_clause_beside_most_lines():
    for name, (first, _) in DEFINED.items():
        assert re.fullmatch(r"# [A-Z].*[.]", LINES[first - 2]), f"{name} has no sentence before it"
    code = [line for line in LINES[LINES.index("# fmt: off") :] if line.strip() and not line.startswith("#")]
    assert sum("  # " in line for line in code) >= 0.7 * len(code)


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> list[str]:
    """What it prints, run elsewhere and by itself: warnings are errors, and there is no path to this package."""
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    command = [sys.executable, "-W", "error", "-I", str(PATH)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path_factory.mktemp("elsewhere")
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def test_it_prints_losses_that_fall_and_names(printed):
    first, *table, before, after = printed
    n_lora, n_base = (int(one.replace(",", "")) for one in re.findall(r"[\d,]+", first))
    base = ml.load_base("surnames")
    count = ml.count_parameters(base.params, ml.LoraConfig(**MICRO.LORA))
    assert (n_lora, n_lora + n_base) == (count.trainable, count.total)
    losses = {}
    for line in table:
        what, train, validation = re.fullmatch(r"(.*?) +train (\d\.\d{3})  validation (\d\.\d{3})", line).groups()
        losses[what] = float(train), float(validation)
    assert list(losses) == ["base", *(f"step {step}" for step in range(0, 1001, 200)), "merged"]
    assert losses["base"] == losses["step 0"], "with B at zero the start is the base"
    assert losses["merged"] == pytest.approx(losses["step 1000"], abs=0.0011)  # what rounding may move
    assert all(losses["step 1000"][i] < losses["step 200"][i] < losses["step 0"][i] - 0.2 for i in (0, 1))
    sets = ml.names_task("female", None, seed=0)
    assert losses["base"] == pytest.approx([ml.evaluate(base, one) for one in sets], abs=0.0006)
    names = [re.fullmatch(rf"{label} +((?:[a-z]+ ?){{8}})", line).group(1) for label, line in
             (("before", before), ("after", after))]  # fmt: skip
    assert names[0] != names[1]


def test_what_the_index_quotes_is_what_it_prints(printed):
    index = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    for page in (index, (TUTORIALS.parent / "README.md").read_text(encoding="utf-8")):
        assert f"{len(LINES)} lines of NumPy" in " ".join(page.split())
    (quoted,) = re.findall(r"```text\n(LoRA trains.*?)\n```", index, re.S)
    assert_reads_like(printed, quoted.split("\n"))


def assert_reads_like(printed: list[str], quoted: list[str]) -> None:
    """The same words and numbers, but for what other kernels of BLAS move in a thousand steps: losses by up to 0.03
    (seen: 0.002), and letters of the names."""
    assert len(printed) == len(quoted)
    for one, other in zip(printed, quoted, strict=True):
        if one.startswith(("before", "after")):
            assert one.split()[0] == other.split()[0]
            continue
        assert re.sub(r"\d\.\d{3}", "#", one) == re.sub(r"\d\.\d{3}", "#", other)
        losses = ([float(number) for number in re.findall(r"\d\.\d{3}", line)] for line in (one, other))
        assert next(losses) == pytest.approx(next(losses), abs=0.03)


def test_a_quoted_loss_that_is_not_printed_is_noticed(printed):
    assert_reads_like(printed, printed)
    for right, wrong in (("2.333", "2.233"), ("step 200", "step 300"), ("3,584", "3,585")):
        with pytest.raises(AssertionError):
            assert_reads_like(printed, [line.replace(right, wrong) for line in printed])


# --- where the chapters point ---

POINTER = re.compile(r"\[([^\]]*)\]\(micro_lora\.py#([^)]*)\)")


def pointers(text: str) -> list[tuple[str, str]]:
    return [(label.replace("\n", " "), anchor) for label, anchor in POINTER.findall(text)]


def check_pointer(label: str, anchor: str, defined) -> None:
    """A link says which definitions it leads to, and its lines are theirs: from the first line of the first to the
    last of the last."""
    *names, lines = re.findall(r"`([^`]*)`", label)
    assert names, f"[{label}] names no definition"
    assert set(names) <= set(defined), f"[{label}]: there is no such definition"
    first, last = defined[names[0]][0], defined[names[-1]][1]
    assert (lines, anchor) == (f"micro_lora.py:{first}-{last}", f"L{first}-L{last}"), f"[{label}] is off"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pointers_lead_to_what_they_name(path):
    for label, anchor in pointers(path.read_text(encoding="utf-8")):
        check_pointer(label, anchor, DEFINED)


def test_chapters_2_to_5_point_to_it():
    pointed = {path.name[:2] for path in PAGES if pointers(path.read_text(encoding="utf-8"))}
    assert {"02", "03", "04", "05"} <= pointed


def test_a_pointer_that_an_edit_has_shifted_is_noticed():
    found = [one for path in PAGES for one in pointers(path.read_text(encoding="utf-8"))]
    shifted = {name: (first + 1, last + 1) for name, (first, last) in DEFINED.items()}
    for label, anchor in found:
        with pytest.raises(AssertionError, match="is off"):
            check_pointer(label, anchor, shifted)
