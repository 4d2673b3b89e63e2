"""The benchmarks are not run here; their page shows what the committed measurements say."""

import importlib.util
import json
import statistics
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
    fastest = f"{measured('step')['sizes'][0]['ms']['minilora']:.2f}"
    assert fastest in page
    assert load("tables").filled(page.replace(fastest, "0.01")) == page


def test_the_step_was_measured_at_every_size_and_on_names_and_ratios_are_of_the_times():
    found = measured("step")
    assert [(row["d_model"], row["n_layers"], row["batch"]) for row in found["sizes"]] == [
        (32, 2, 32), (64, 2, 32), (64, 4, 64), (128, 4, 64),
    ]  # fmt: skip
    for row in (*found["sizes"], found["names"]):
        assert row["ratio"].keys() >= {"autograd", "peft", "jax.jit"}
        for name, ratio in row["ratio"].items():
            assert ratio == pytest.approx(row["ms"]["minilora"] / row["ms"][name])
    assert "jax.jit padded" in found["names"]["ratio"]


def test_all_did_the_same_sweep():
    found = measured("sweep")
    assert found.keys() == {"fit_stack", "fit", "peft", "jit(vmap(scan))", "jit(map(scan))"}
    losses = [one["mean_loss"] for one in found.values()]
    assert max(losses) - min(losses) < 0.01
    for name, one in found.items():
        assert all(seconds > 0 for seconds in one["compile_seconds"]) == name.startswith("jit")


def test_whole_commands_did_something_and_their_ratio_is_that_of_the_medians():
    for one in measured("wall")["commands"].values():
        assert one["runs"] > 0
        this, beside = (statistics.median(one["seconds"][name]) for name in ("this", "beside"))
        assert one["ratio"] == pytest.approx(this / beside)


@pytest.mark.parametrize(
    ("aimed", "found", "at_least", "verdict"),
    [
        ([0.6], [0.604], False, "yes"),  # as it is shown: 0.60
        ([0.6], [0.606], False, "no"),
        ([6.0], [6.0], True, "yes"),
        ([6.0], [5.9], True, "no"),
        ([0.8, 0.9], [0.7, 1.0], False, "at 1 of 2 sizes"),
    ],
)
def test_the_page_says_which_aims_are_met(aimed, found, at_least, verdict):
    assert load("tables").aim("a step", aimed, found, at_least)[-1] == verdict


def test_memory_did_not_grow_over_ten_thousand_steps():
    held = measured("growth")["memory_mb"]
    assert max(map(int, held)) == 10_000
    assert max(held.values()) - held["100"] < 1
