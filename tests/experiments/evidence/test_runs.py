"""The table of runs: its CSV without loss, selecting, and tuning on the other seeds."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.experiments.evidence.runs import (
    BEST,
    COLUMNS,
    MissingRunsError,
    Run,
    Runs,
    evaluated,
    from_csv,
    given_up,
    log10_best_rate,
    steps_to,
    to_csv,
    tuned_rates,
)
from minilora.experiments.evidence.settings import Settings

from .. import tiny

positive = st.floats(1e-300, 1e300)
some_settings = st.builds(
    Settings,
    task=st.sampled_from(["names", "planted"]),
    target_modules=st.sampled_from(["all-linear", "q_proj+v_proj"]),
    r=st.integers(1, 10**9),
    lora_alpha=positive,
    lora_dropout=st.floats(0, 1, exclude_max=True),
    learning_rate=positive,
    steps=st.integers(1, 40),
    evaluate_every=st.integers(10, 50),
    seed=st.integers(0, 2**40),
)


@st.composite
def some_run(draw):
    settings = draw(some_settings)
    step = evaluated(settings)
    diverged_at = draw(st.integers(-1, settings.steps))
    if diverged_at >= 0:
        step = tuple(one for one in step if one < diverged_at) or (0,)
        diverged_at = max(diverged_at, 1)
    losses = [tuple(draw(st.lists(finite, min_size=len(step), max_size=len(step)))) for _ in range(3)]
    return Run(settings, step, *losses, draw(st.floats(0, 3)), draw(st.floats(0, 3)), draw(st.integers(1, 10**9)),
               diverged_at)  # fmt: skip


finite = st.floats(allow_nan=False, allow_infinity=False)
some_runs = some_run()


@given(st.lists(some_runs, max_size=4, unique_by=lambda run: run.settings))
def test_a_csv_gives_the_same_runs_back(runs):
    text = to_csv(Runs(runs))
    back = from_csv(text)
    assert repr(list(back)) == repr(runs), "every digit, every type, the order"
    assert to_csv(back) == text


def test_the_csv_is_tidy():
    runs = tiny.fabricated(tiny.TINY, n_seeds=2)
    header, *rows = to_csv(runs).splitlines()
    assert header.split(",") == COLUMNS
    assert set(COLUMNS) >= {field.name for field in dataclasses.fields(Settings)} | {"step", "train_loss"}
    assert len(rows) == sum(len(run.step) for run in runs)


def _spoilt():
    text = to_csv(tiny.fabricated(tiny.OTHER, n_seeds=1))
    return {
        "nothing": "",
        "another table": "a,b\n1,2\n",
        "a column less": "\n".join(line.rpartition(",")[0] for line in text.splitlines()),
        "a word for a number": text.replace("40", "forty"),
        "cut off before the last losses": text.rsplit(",", 6)[0],
        "cut off before the last column": text.rsplit(",", 1)[0],
        "without its last evaluation": text[: text.rstrip("\n").rindex("\n") + 1],
        "a number that is none": text.replace("0.0,0.0,", "nan,0.0,"),
        "an infinite number": text.replace("0.0,0.0,", "inf,0.0,"),
        "a run twice": text + text.split("\n", 1)[1],
        "steps out of order": "\n".join([text.split("\n")[0], *text.split("\n")[:0:-1][1:], ""]),
        "two numbers of parameters in one run": text.replace(",384,-1\n", ",385,-1\n", 1),
        "no parameters": text.replace(",384,-1", ",0,-1"),
        "another method": text.replace(",lora,", ",lorra,"),
        "a dropout of 2": text.replace(",6.0,0.0,", ",6.0,2.0,"),
    }


@pytest.mark.parametrize("name", _spoilt())
def test_a_csv_of_anything_else_is_a_value_error(name):
    assert _spoilt()[name] != to_csv(tiny.fabricated(tiny.OTHER, n_seeds=1))
    with pytest.raises(ValueError, match=r"\w"):
        from_csv(_spoilt()[name])


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text])
def test_line_ends_and_what_editors_put_before_a_text_do_not_count(change):
    text = to_csv(tiny.fabricated(tiny.OTHER, n_seeds=2))
    assert to_csv(from_csv(change(text))) == text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": (0, 2)}, "step.*: 2.*train_loss.*: 3"),
        ({"step": (0, 2, 3)}, r"step: got \(0, 2, 3\), takes \(0, 2, 4\)"),
        ({"train_loss": (1.0, math.nan, 1.0)}, "train_loss: got nan"),
        ({"validation_loss": (1.0, math.inf, 1.0)}, "validation_loss: got inf"),
        ({"change_norm": (0.0, None, 1.0)}, "change_norm: got None"),
        ({"floor": "0"}, "floor: got '0'"),
        ({"trainable": 8.5}, "trainable: got 8.5, takes an integer"),
        ({"trainable": 0}, "trainable: got 0"),
        ({"diverged_at": 7}, "diverged_at: got 7"),
    ],
    ids=str,
)
def test_what_could_not_be_read_back_is_not_written(changes, says):
    run = dataclasses.replace(tiny.fabricate(tiny.settings()), **changes)
    with pytest.raises((ValueError, TypeError), match=says):
        to_csv(Runs([run]))


def test_a_run_is_written_once():
    run = tiny.fabricate(tiny.settings())
    with pytest.raises(ValueError, match="got a run twice: names n=40"):
        to_csv(Runs([run, run]))


def test_a_run_that_diverges_may_have_been_measured_at_that_very_step():
    """Where its loss in training is not finite any more, and that of the evaluation before was."""
    run = tiny.fabricate(tiny.settings())
    for at, n in [(2, 1), (2, 2), (3, 2), (4, 2)]:
        shorter = {name: getattr(run, name)[:n] for name in ("step", "train_loss", "validation_loss", "change_norm")}
        to_csv(Runs([dataclasses.replace(run, diverged_at=at, **shorter)]))


def test_metrics_of_a_run():
    run = Run(Settings(), (0, 2, 4), (2.5, 2.0, 1.5), (2.6, 2.2, 2.3), (0.0, 1.0, 3.0), 0.5, 0.2, 10, -1)
    assert (run.best, run.final, run.final_train) == pytest.approx((1.7, 1.8, 1.3))
    assert run.overfit == pytest.approx(0.1)
    assert run.final_norm == 3.0
    assert not run.diverged


@pytest.mark.parametrize("at", [0, 3])
def test_a_diverged_run_is_infinitely_bad(at):
    run = dataclasses.replace(tiny.fabricate(tiny.settings()), diverged_at=at)
    assert run.diverged
    assert [run.best, run.final, run.final_train, run.overfit] == [math.inf] * 4
    assert math.isnan(run.final_norm)


def _table(losses, rates=(0.1, 0.2, 0.3), **changes) -> Runs:
    """Runs whose best loss is losses[rate][seed]; infinity stands for a run that diverged. Seeds in falling order."""
    runs = []
    for rate, row in zip(rates, losses, strict=True):
        for seed, loss in reversed(list(enumerate(row))):
            run = tiny.fabricate(tiny.settings(learning_rate=rate, seed=seed, **changes), diverged=loss == math.inf)
            runs.append(dataclasses.replace(run, validation_loss=(loss,) * len(run.step)))
    return Runs(runs)


def _seed(run: Run) -> int:
    return run.settings.seed


def test_selecting():
    runs = Runs([*_table([[1.0, 2.0]] * 3, r=1), *_table([[3.0, 4.0]] * 3, r=2)])
    assert len(runs.where(r=1)) == 6
    assert len(runs.where(r=1, learning_rate=0.1)) == 2
    assert len(runs.where(r=7)) == 0
    assert runs.values("learning_rate") == [0.1, 0.2, 0.3]
    assert runs.per_seed(_seed, r=1, learning_rate=0.2).tolist() == [0, 1], "in the order of the seeds"
    assert runs.per_seed(lambda run: run.best, r=2, learning_rate=0.2).tolist() == [3.0, 4.0]


def test_a_selection_of_several_runs_a_seed_is_refused():
    runs = _table([[1.0, 2.0]] * 3)
    with pytest.raises(ValueError, match="several runs a seed"):
        runs.per_seed(_seed, r=8)
    with pytest.raises(ValueError, match="several runs a seed"):
        Runs([*runs, *_table([[1.0, 2.0]] * 3, n_train=41)]).tuned(_seed)


def test_missing_runs_are_an_error_that_names_them():
    runs = _table([[1.0, 2.0]] * 3)
    with pytest.raises(MissingRunsError, match=r"'r': 7"):
        runs.per_seed(_seed, r=7)
    with pytest.raises(MissingRunsError, match=r"'r': 7"):
        runs.tuned(_seed, r=7)
    lacks_one = Runs([run for run in runs if (run.settings.seed, run.settings.learning_rate) != (1, 0.2)])
    with pytest.raises(MissingRunsError, match=r"0\.2"):
        lacks_one.per_seed(_seed, learning_rate=0.2)
    with pytest.raises(MissingRunsError, match=r"0\.2"):
        lacks_one.tuned(_seed)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((2.4, 2.2, 2.0), 15), ((2.4, 2.1, 2.0), 10), ((2.4,), math.inf), ((2.0, 2.5, 2.5), 0), ((2.4, 2.0, 2.4), 7.5)],
)  # fmt: skip
def test_steps_to_a_loss_are_read_off_between_evaluations(losses, expected):
    run = dataclasses.replace(tiny.fabricate(tiny.settings()), step=(0, 10, 20)[: len(losses)], validation_loss=losses)
    assert steps_to(2.1)(run) == pytest.approx(expected)


@pytest.mark.parametrize("bottom", [-3.0, -2.8, -2.5, -2.3])
def test_the_best_rate_is_found_between_those_tried(bottom):
    rates = (3e-4, 1e-3, 3e-3, 1e-2)
    runs = [tiny.fabricate(tiny.settings(learning_rate=rate, seed=seed)) for rate in rates for seed in (0, 1)]
    on_grid = {3e-4: -3.5, 1e-3: -3.0, 3e-3: -2.5, 1e-2: -2.0}
    runs = [
        dataclasses.replace(run, validation_loss=((on_grid[run.settings.learning_rate] - bottom) ** 2,)) for run in runs
    ]
    assert log10_best_rate(Runs(runs)) == pytest.approx([bottom] * 2, abs=1e-9)


def test_what_is_given_up_is_against_the_hardest_rival():
    rng = np.random.default_rng(0)
    loss, near, far = rng.normal(0, 1, 8), rng.normal(0, 1, 8), rng.normal(-9, 1, 8)
    np.testing.assert_array_equal(given_up(loss, np.array([near, far])), loss - far)
    np.testing.assert_array_equal(given_up(loss, np.array([loss, near])), loss - near)


def test_a_column_that_does_not_exist_is_named_with_the_nearest():
    runs = Runs([tiny.fabricate(tiny.settings())])
    for select in (
        lambda: runs.where(lora_alfa=1),
        lambda: runs.values("lora_alfa"),
        lambda: runs.per_seed(len, lora_alfa=1),
    ):
        with pytest.raises(ValueError, match=r"column: unknown field 'lora_alfa' \(did you mean 'lora_alpha'\?\)"):
            select()


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (lambda runs: runs.where(r="8"), "r: got '8', takes an integer"),
        (lambda runs: runs.where(r=8.5), "r: got 8.5, takes an integer"),
        (lambda runs: runs.where(lora_alpha=None), "lora_alpha: got None, takes a finite number"),
        (lambda runs: runs.per_seed(_seed, learning_rate=[0.1]), r"learning_rate: got \[0.1\]"),
        (lambda runs: runs.tuned(_seed, method="LoRA"), "method: got 'LoRA', takes one of 'lora', 'full'"),
        (lambda runs: runs.per_seed("best"), "metric: got 'best', takes a function of a run"),
        (lambda runs: runs.tuned("best"), "metric: got 'best'"),
        (lambda runs: Runs([*runs, None]), "runs: got None, takes Runs of a study"),
        (lambda runs: Runs(["best"]), "runs: got 'best'"),
        (lambda runs: steps_to("2.1"), "target: got '2.1', takes a finite number"),
    ],
    ids=range(10),
)
def test_arguments_of_another_kind_are_refused_by_name(select, says):
    """Else they would select no runs, without a word of why."""
    with pytest.raises((ValueError, TypeError), match=says):
        select(_table([[1.0]] * 3))


def test_a_value_is_taken_as_settings_take_it():
    runs = _table([[1.0]] * 3)
    assert len(runs.where(r=np.int64(8), lora_alpha=16, init_lora_weights=True)) == 3


def test_tuning_chooses_on_the_other_seeds():
    """Seed 0 likes the first rate best, and the mean over all seeds does too; seeds 1 and 2 like the second."""
    runs = _table([[0.0, 2.0, 2.0], [3.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    assert tuned_rates(runs) == [0.2, 0.1, 0.1]
    assert runs.tuned(lambda run: run.best).tolist() == [3.0, 2.0, 2.0]


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_tuning_does_not_look_at_the_own_seed(entropy, n_seeds, n_rates, diverges):
    losses = np.random.default_rng(entropy).uniform(1, 3, (n_rates, n_seeds))
    rates = [0.1 * (i + 1) for i in range(n_rates)]
    before = tuned_rates(_table(losses, rates))
    for seed in range(n_seeds):
        expected = np.delete(losses, seed, axis=1).mean(1).argmin()
        assert before[seed] == rates[expected]
        changed = losses.copy()
        changed[:, seed] = 5 - changed[:, seed]
        if diverges:
            changed[expected, seed] = math.inf
        assert tuned_rates(_table(changed, rates))[seed] == before[seed]


def test_tuned_at_each_value_of_a_setting():
    runs = Runs(
        [*_table([[0.0, 2.0], [3.0, 1.0], [9.0, 9.0]], r=1), *_table([[5.0, 5.0], [4.0, 4.0], [6.0, 6.0]], r=2)]
    )
    assert runs.over("r", BEST).tolist() == [runs.tuned(BEST, r=r).tolist() for r in (1, 2)]
    assert runs.over("r", BEST, (2,)).tolist() == [[4.0, 4.0]]
    assert runs.over("r", _seed, (2, 1), by=_seed).tolist() == [[0, 1], [0, 1]]
    for values in ((), (1, 7)):
        with pytest.raises(MissingRunsError):
            runs.over("r", BEST, values)


def test_tuning_among_one_rate_is_no_tuning():
    runs = _table([[1.0, 2.0, 3.0]] * 3)
    for rate in (0.1, 0.2):
        at_rate = runs.where(learning_rate=rate)
        assert at_rate.tuned(_seed).tolist() == runs.per_seed(_seed, learning_rate=rate).tolist()


def test_a_seed_that_a_whole_cell_lacks_is_missed():
    runs = Runs([*_table([[1.0, 2.0]] * 3, r=1), *_table([[1.0]] * 3, r=2)])
    with pytest.raises(MissingRunsError):
        runs.tuned(BEST, r=2)


def test_a_rate_at_which_another_seed_diverged_is_not_chosen():
    """The first rate is far the best but for seed 2."""
    runs = _table([[0.1, 0.1, math.inf], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    assert tuned_rates(runs)[:2] == [0.2, 0.2]
    assert runs.tuned(lambda run: run.best)[:2].tolist() == [2.0, 2.0]
    assert np.isfinite(_table([[math.inf] * 3, [2.0] * 3, [math.inf] * 3]).tuned(lambda run: run.best)).all()


def test_where_every_rate_diverged_tuning_gives_infinity():
    assert _table([[math.inf] * 2] * 3).tuned(lambda run: run.best).tolist() == [math.inf] * 2


def test_with_one_seed_tuning_takes_its_own_best():
    assert _table([[2.0], [1.0], [math.inf]]).tuned(lambda run: run.best).tolist() == [1.0]
