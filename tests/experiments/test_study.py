"""Grids, settings and the shipped studies: valid before any run is done."""

import dataclasses

import pytest

from minilora.data.names import N_VALIDATION, load_names
from minilora.experiments.__main__ import parser
from minilora.experiments.runner import base, lora_config, train_config
from minilora.experiments.study import HEADLINE, N_SEEDS, Settings, grid, load_studies
from minilora.lora import select_modules

from . import tiny

STUDIES = load_studies()
shipped = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


def test_a_grid_has_every_combination_and_derives_the_rest():
    cells = grid({"steps": 5}, r=[1, 2], learning_rate=[0.1, 0.2, 0.3], lora_alpha=lambda cell: cell["r"] * 10)
    assert {(c["r"], c["learning_rate"]) for c in cells} == {(r, rate) for r in (1, 2) for rate in (0.1, 0.2, 0.3)}
    assert len(cells) == 6
    assert all(c["lora_alpha"] == 10 * c["r"] and c["steps"] == 5 for c in cells)


def test_an_axis_overrides_the_base_and_leaves_it_alone():
    fixed = {"r": 1}
    assert grid(fixed, r=[2]) == [{"r": 2}]
    assert fixed == {"r": 1}


def test_runs_go_seed_by_seed_and_none_twice():
    study = dataclasses.replace(tiny.TINY, cells=[*tiny.TINY.cells, tiny.TINY.cells[0]])
    assert [(one.seed, one.r) for one in study.runs([3, 4])] == [(3, 1), (3, 2), (4, 1), (4, 2)]
    assert [(one.seed, one.r) for one in study.runs([3, 4], quick=True)] == [(3, 1), (4, 1)]


@pytest.mark.parametrize("cells", ["cells", "quick_cells"])
def test_a_misspelt_setting_is_refused_with_the_right_one(cells):
    with pytest.raises(ValueError, match=r"study tiny: unknown field 'lora_alfa' \(did you mean 'lora_alpha'\?\)"):
        dataclasses.replace(tiny.TINY, **{cells: [{"lora_alfa": 1.0}]})


def test_settings_are_flat_and_their_label_tells_runs_apart():
    assert all(isinstance(value, str | int | float) for value in dataclasses.asdict(Settings(seed=3)).values())
    labels = {Settings(**{name: value}).label() for name, value in
              [("seed", 1), ("r", 3), ("lora_alpha", 1.0), ("lora_dropout", 0.2), ("learning_rate", 0.3),
               ("n_train", 7), ("task", "planted"), ("method", "full")]}  # fmt: skip
    assert len(labels) == 8


def test_the_headline_studies_come_first():
    assert tuple(STUDIES)[: len(HEADLINE)] == HEADLINE
    assert all(study.name == name for name, study in STUDIES.items())


def test_the_headline_claims_are_all_there():
    claims = {claim.id for name in HEADLINE for claim in STUDIES[name].claims}
    assert claims >= {"R1", "R2", "R3", "R4", "A1", "A2", "A3", "D1", "D2", "D3"}


def test_seeds_are_enough_for_a_verdict_by_default():
    assert parser().parse_args([]).seeds >= N_SEEDS == 8


@shipped
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_the_settings_of_a_shipped_study_can_run(study, quick):
    """All that can be known without running: everything below accepts them, and there is that much data."""
    for one in study.runs([0], quick):
        train_config(one)
        config = lora_config(one)
        assert config is None or select_modules(base().params, config)
        assert (one.method == "full") == (config is None)
        assert one.task in ("names", "planted")
        assert (one.task == "planted") == (one.planted_rank > 0)
        assert 0 < one.n_train <= len(load_names("female")) - N_VALIDATION
        kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
        assert {name: type(value) for name, value in dataclasses.asdict(one).items()} == kinds, (
            "the CSV gives these types back"
        )


@shipped
def test_a_quick_version_is_smaller(study):
    def updates(quick):
        return sum(one.steps * one.batch_size for one in study.runs([0], quick))

    assert 0 < updates(True) < updates(False) / 2


@shipped
def test_claims_are_complete(study):
    places = [(claim.id, claim.prediction) for claim in study.claims]
    assert len(set(places)) == len(places), "rows are told apart by these two"
    for claim in study.claims:
        assert claim.smallest_effect >= 0
        assert all((claim.statement, claim.prediction, claim.unit, claim.regime))


@shipped
def test_tuned_groups_and_samples_name_runs_of_the_study(study):
    runs = tiny.fabricated(study, n_seeds=1)
    for group in study.tuned:
        assert len(runs.where(**group).values("learning_rate")) >= 3, "fewer cannot have an optimum inside"
        runs.where(**group).tuned(lambda run: run.best)  # one run a rate and seed
    for wanted in study.samples.values():
        assert len(runs.where(**wanted)) == 1
