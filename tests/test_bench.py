"""The benchmarks are not run here; their page shows what the committed measurements say."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


def load(name: str):
    """A module of tests/bench, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(name: str):
    return json.loads((BENCH / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_measurements():
    page = (BENCH / "README.md").read_text(encoding="utf-8")
    assert load("tables").filled(page) == page, "run: python tests/bench/tables.py"


def test_a_table_that_was_edited_would_be_noticed():
    page = (BENCH / "README.md").read_text(encoding="utf-8")
    fastest = f"{measured('step')[0]['ms']['minilora']:.2f}"
    assert fastest in page
    assert load("tables").filled(page.replace(fastest, "0.01")) == page


def test_the_step_was_measured_at_every_size_and_ratios_are_of_the_times():
    rows = measured("step")
    assert [(row["d_model"], row["n_layers"], row["batch"]) for row in rows] == [
        (32, 2, 32), (64, 2, 32), (64, 4, 64), (128, 4, 64),
    ]  # fmt: skip
    for row in rows:
        assert row["ms"].keys() >= {"minilora", "autograd", "peft", "jax.jit"}
        for name, ratio in row["ratio"].items():
            assert ratio == pytest.approx(row["ms"]["minilora"] / row["ms"][name])


def test_memory_did_not_grow_over_ten_thousand_steps():
    held = measured("growth")["memory_mb"]
    assert max(map(int, held)) == 10_000
    assert max(held.values()) - held["100"] < 1
