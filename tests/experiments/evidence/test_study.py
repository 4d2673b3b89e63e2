"""Grids, settings and the shipped studies: valid before any run is done."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from minilora.data.names import N_VALIDATION, load_names
from minilora.experiments import __main__ as command
from minilora.experiments import studies
from minilora.experiments.__main__ import parser
from minilora.experiments.engine.runner import base, lora_config, train_config
from minilora.experiments.evidence.claims import ARTICLE, ORDER
from minilora.experiments.evidence.rehearsal import rehearse
from minilora.experiments.evidence.settings import Settings, grid
from minilora.experiments.evidence.stats import N_SEEDS
from minilora.experiments.evidence.study import Contrast, StudyError, allowance
from minilora.experiments.studies import load_studies
from minilora.lora import select_modules

from .. import tiny

STUDIES = load_studies()
shipped = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


def test_a_grid_has_every_combination_and_derives_the_rest():
    cells = grid({"steps": 5}, r=[1, 2], learning_rate=[0.1, 0.2, 0.3], lora_alpha=lambda cell: cell["r"] * 10)
    assert {(c["r"], c["learning_rate"]) for c in cells} == {(r, rate) for r in (1, 2) for rate in (0.1, 0.2, 0.3)}
    assert len(cells) == 6
    assert all(c["lora_alpha"] == 10 * c["r"] and c["steps"] == 5 for c in cells)


def test_a_function_may_give_several_values():
    own = {1: (0.1, 0.2), 2: (0.3,)}
    cells = grid({}, r=[1, 2], lora_alpha=lambda cell: cell["r"] * 10, learning_rate=lambda cell: own[cell["r"]])
    assert [(c["r"], c["lora_alpha"], c["learning_rate"]) for c in cells] == [(1, 10, 0.1), (1, 10, 0.2), (2, 20, 0.3)]


def test_an_axis_overrides_the_base_and_leaves_it_alone():
    fixed = {"r": 1}
    assert grid(fixed, r=[2]) == [{"r": 2}]
    assert fixed == {"r": 1}


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"schedule": "linear"}, "schedule: got 'linear', takes a list of values, or a function"),
        ({"r": 8}, "r: got 8, takes a list of values"),
        ({"r": []}, r"r: got \[\], takes a list of values"),
        ({"r": {1, 2}}, "r: got {1, 2}, takes a list of values"),
    ],
    ids=str,
)
def test_an_axis_that_is_none_is_refused(axes, says):
    """A text would be taken letter by letter, and no values would make no runs."""
    with pytest.raises(ValueError, match=says):
        grid({"steps": 5}, **axes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 8.5}, "r: got 8.5, takes an integer of at least 0"),
        ({"r": "8"}, "r: got '8', takes an integer"),
        ({"r": True}, "r: got True, takes an integer"),
        ({"r": 0}, "r: got 0, takes an integer of at least 1; 0 is for method='full'"),
        ({"n_train": 0}, "n_train: got 0, takes an integer of at least 1"),
        ({"steps": 0}, "steps: got 0"),
        ({"evaluate_every": -1}, "evaluate_every: got -1"),
        ({"seed": -1}, "seed: got -1"),
        ({"lora_dropout": 1.0}, "lora_dropout: got 1.0, takes a number of at least 0 and below 1"),
        ({"lora_dropout": "0.1"}, "lora_dropout: got '0.1'"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, takes a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha: got inf"),
        ({"method": "LoRA"}, "method: got 'LoRA', takes one of 'lora', 'full'"),
        ({"layers": 0}, "layers: got 0, takes a text"),
        ({"target_modules": ["q_proj"]}, r"target_modules: got \['q_proj'\], takes a text"),
        ({"task": ""}, "task: got '', takes a text"),
    ],
    ids=str,
)
def test_settings_are_checked_as_configs_are(changes, says):
    """Each was turned into something else before, or told apart from nothing."""
    with pytest.raises(ValueError, match=says):
        Settings(**changes)
    with pytest.raises(ValueError, match=f"study tiny: cells: {says}"):
        dataclasses.replace(tiny.TINY, cells=[tiny.FIXED | changes])


def test_settings_that_mean_the_same_are_the_same():
    assert Settings(lora_alpha=16, r=np.int64(8), init_lora_weights=True) == Settings(lora_alpha=16.0, r=8.0)
    assert Settings(learning_rate=np.float32(0.5)) == Settings(learning_rate=0.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "all"}, "name: got 'all', takes letters"),
        ({"name": "recipe"}, "name: got 'recipe'"),
        ({"name": "../rank"}, "name: got '../rank'"),
        ({"name": None}, "name: got None"),
        ({"question": " "}, "question: got ' ', takes a text"),
        ({"draw": "plots"}, "draw: got 'plots', takes a function"),
        ({"headline": 1}, "headline: got 1"),
        ({"cells": []}, r"study tiny: cells: got \[\], takes a list of settings, at least one"),
        ({"quick_cells": None}, "study tiny: quick_cells: got None"),
        ({"contrasts": ["R2"]}, "contrasts: got 'R2', takes Contrasts"),
        ({"tuned": [{"rank": 1}]}, "study tiny: unknown field 'rank'"),
        ({"samples": {"r=1": {"rank": 1}}}, "study tiny: unknown field 'rank'"),
        ({"n_seeds": 8.5}, "n_seeds: got 8.5"),
    ],
    ids=str,
)
def test_fields_of_a_study_are_checked(changes, says):
    with pytest.raises((ValueError, TypeError), match=says):
        dataclasses.replace(tiny.TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"measure": 0.1}, "measure: got 0.1, takes a function, for claim R2"),
        ({"variants": {"otherwise": 0.1}}, "otherwise: got 0.1, takes a function"),
        ({"variants": [len]}, "variants: got .*, takes {label: function}"),
        ({"exact": 1}, "exact: got 1"),
        ({"scale": 0}, "scale: got 0, takes a number above 0"),
        ({"smallest_effect": "0.1"}, "smallest_effect: got '0.1'"),
        ({"smallest_effect": float("inf")}, "smallest_effect: got inf"),
    ],
    ids=str,
)
def test_fields_of_a_contrast_are_checked(changes, says):
    with pytest.raises((ValueError, TypeError), match=says):
        dataclasses.replace(tiny.DIFFERENCE, **changes)


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
               ("n_train", 7), ("task", "planted"), ("method", "full"), ("layers", "0"), ("bias", "all"),
               ("init_lora_weights", "he"), ("weight_decay", 0.1), ("batch_size", 4),
               ("target_modules", "q_proj")]}  # fmt: skip
    assert len(labels) == 14


def test_studies_come_in_the_order_of_the_article():
    firsts = [ORDER.index(study.contrasts[0].claim) for study in STUDIES.values()]
    assert firsts == sorted(firsts)
    assert all(study.name == name for name, study in STUDIES.items())


def test_every_claim_of_the_article_has_a_contrast():
    assert {contrast.claim for study in STUDIES.values() for contrast in study.contrasts} == set(ARTICLE)
    assert len(ARTICLE) == 28


def test_seeds_are_enough_for_a_verdict_by_default():
    assert all(study.n_seeds >= N_SEEDS == 8 for study in STUDIES.values())
    assert parser().parse_args([]).seeds is None


@shipped
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_the_settings_of_a_shipped_study_can_run(study, quick):
    """All that can be known without running: everything below accepts them, and there is that much data."""
    for one in study.runs([0], quick):
        train_config(one)
        config = lora_config(one)
        assert config is None or select_modules(base(one.base).params, config)
        assert (one.method == "full") == (config is None)
        assert one.task in ("names", "male", "planted")
        assert (one.task == "planted") == (one.planted_rank > 0)
        assert 0 < one.n_train <= ({"male": 610}.get(one.task, len(load_names("female")) - N_VALIDATION))
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
def test_contrasts_are_told_apart_and_can_be_rehearsed(study):
    places = [(contrast.claim, contrast.prediction) for contrast in study.contrasts]
    assert len(set(places)) == len(places), "rows are told apart by these two"
    assert all(re.search("{(effect|given_up)}", contrast.plain) for contrast in study.contrasts)
    rehearse(study)


@pytest.mark.parametrize("name", ["prediction", "plain", "unit", "regime"])
@pytest.mark.parametrize("value", ["", "  ", None])
def test_a_contrast_without_a_text_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value!r}, takes a text, for claim R2"):
        dataclasses.replace(tiny.DIFFERENCE, **{name: value})


def test_a_contrast_without_a_field_is_refused():
    with pytest.raises(TypeError, match="prediction"):
        Contrast(claim="R1", plain="", smallest_effect=0, unit="x", measure=lambda runs: None, regime="x")


def test_what_is_left_of_an_allowance_is_a_contrast():
    shared = {"claim": "A3", "prediction": "x", "plain": "{given_up} nats of {effect}", "regime": "tiny"}
    made = allowance(0.25, measure=lambda runs: np.array([0.0, 0.5]), variants={"v": lambda runs: np.ones(2)}, **shared)
    assert made.measure(None).tolist() == [0.25, -0.25]
    assert made.variants["v"](None).tolist() == [-0.75, -0.75]
    assert (made.smallest_effect, made.scale, made.unit) == (0, 0.25, "nats per letter left of the 0.25 allowed")


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_smallest_effect_is_no_less_than_nothing(value):
    with pytest.raises(ValueError, match=r"smallest_effect: got .*, takes a number of at least 0"):
        dataclasses.replace(tiny.DIFFERENCE, smallest_effect=value)


def test_a_claim_that_the_article_does_not_make_is_refused():
    with pytest.raises(ValueError, match=r"claim: got 'R9', takes one of R1, R2"):
        dataclasses.replace(tiny.DIFFERENCE, claim="R9")


@pytest.mark.parametrize("n", [0, 1, 7])
def test_too_few_seeds_for_a_verdict_are_refused(n):
    with pytest.raises(ValueError, match="n_seeds: got"):
        dataclasses.replace(tiny.TINY, n_seeds=n)


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (lambda runs: runs.per_seed(len, rank=1), r"column: unknown field 'rank'"),
        (lambda runs: runs.where(lora_alfa=1), r"'lora_alfa' \(did you mean 'lora_alpha'\?\)"),
        (lambda runs: runs.values("ranks"), "unknown field 'ranks'"),
        (lambda runs: runs.per_seed(lambda run: run.losses, r=1), "losses"),
        (lambda runs: runs.per_seed(lambda run: run.best, r=99), "no run with"),
        (lambda runs: 0.1, "takes one number a seed"),
        (lambda runs: [0.1], "takes one number a seed"),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("where", ["measure", "variants"])
def test_a_contrast_that_cannot_be_measured_is_refused_before_anything_runs(measure, says, where):
    changed = {"measure": measure} if where == "measure" else {"variants": {"otherwise": measure}}
    study = dataclasses.replace(tiny.TINY, contrasts=[dataclasses.replace(tiny.DIFFERENCE, **changed)])
    with pytest.raises(StudyError, match=rf"study tiny: R2: .*{says}"):
        rehearse(study)


BAD_FILES = {
    "prediction": ("STUDY = Contrast(claim='R1')", "prediction"),
    "nothing": ("", "STUDY"),
    "something else": ("STUDY = 1", "STUDY: got int, takes a Study"),
    "cell": ("STUDY = dataclasses.replace(tiny.TINY, cells=[{'rank': 1}])", "unknown field 'rank'"),
    "contrasts": ("STUDY = dataclasses.replace(tiny.TINY, contrasts=[])", "contrasts: got none"),
    "seeds": ("STUDY = dataclasses.replace(tiny.TINY, n_seeds=2)", "n_seeds: got 2, takes at least 8"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_study_file_is_refused_by_the_command_with_its_name_and_the_field(case, tmp_path, monkeypatch, capsys):
    body, says = BAD_FILES[case]
    head = (
        "import dataclasses\nfrom minilora.experiments.evidence.study import Contrast\n"
        "from tests.experiments import tiny\n"
    )
    (tmp_path / "bad_study.py").write_text(head.replace("tests.experiments", tiny.__package__) + body + "\n")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{studies.__name__}.bad_study", raising=False)
    assert command.main(["rank", "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: bad_study.py: ")
    assert says in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@shipped
def test_tuned_groups_and_samples_name_runs_of_the_study(study):
    runs = tiny.fabricated(study, n_seeds=1)
    for group in study.tuned:
        assert len(runs.where(**group).values("learning_rate")) >= 3, "fewer cannot have an optimum inside"
        runs.where(**group).tuned(lambda run: run.best)  # one run a rate and seed
    for wanted in study.samples.values():
        assert len(runs.where(**wanted)) == 1
