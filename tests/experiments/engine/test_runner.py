"""Runs: each done once, the same wherever it is done, stored, and none taking the others with it."""

import ast
import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minilora.experiments.engine import provenance, runner, workers
from minilora.experiments.engine import store as store_module
from minilora.experiments.engine.provenance import COMPUTED_BY
from minilora.experiments.engine.runner import as_run, execute, stacks
from minilora.experiments.engine.store import Store, run_key
from minilora.experiments.engine.workers import RunFailedError, run_all
from minilora.experiments.evidence.runs import MEASURED
from minilora.experiments.pages import folder
from minilora.files import to_json

from .. import tiny

# Runs that diverge overflow first; the command ignores these warnings too.
overflows = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def executed(monkeypatch):
    """The settings of every run that is done from here on, in this process."""
    seen = []

    def counted(stack):
        seen.extend(stack)
        return execute(stack)

    monkeypatch.setattr(runner, "execute", counted)
    return seen


def alone(settings):
    """The result of one run, done by itself."""
    return execute([settings])[0]


SOME = [
    tiny.settings(r=2),
    tiny.settings(r=2, lora_dropout=0.5, seed=1),
    tiny.settings(method="full", r=0, learning_rate=1e-3),
    tiny.settings(task="planted", planted_rank=1),
]


def test_a_run_measures_what_it_should():
    run = as_run(SOME[0], alone(SOME[0]))
    assert run.step == (0, 2, 4)
    assert len(run.train_loss) == len(run.validation_loss) == len(run.change_norm) == 3
    assert run.change_norm[0] == 0 < run.change_norm[1] < run.change_norm[2]
    assert run.floor == 0
    assert not run.diverged
    assert 0 < as_run(SOME[3], alone(SOME[3])).floor < run.validation_loss[0]


def test_the_same_settings_give_the_same_bits():
    once = [to_json(alone(settings)) for settings in SOME]
    runner._task.cache_clear()  # the data are made anew too
    assert [to_json(alone(settings)) for settings in SOME] == once
    assert len(set(once)) == len(SOME)


def test_the_number_of_processes_does_not_change_a_bit(tmp_path):
    """Nor do the order of the runs and what a process did before."""
    one, two = (run_all(SOME, Store(tmp_path / str(jobs)), jobs) for jobs in (1, 2))
    backwards = run_all(SOME[::-1], Store(tmp_path / "backwards"), 1)
    assert [to_json(one[s]) for s in SOME] == [to_json(two[s]) for s in SOME] == [to_json(backwards[s]) for s in SOME]
    assert list(one) == list(two) == SOME


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("jobs", [1, 2])
def test_blas_has_one_thread_where_runs_are_done(tmp_path, monkeypatch, jobs):
    """In the command and in its workers, asked in the middle of training, where `watch` measures the change."""
    seen, guarded = tmp_path / "seen", workers.guarded

    def watched(stack):
        def counted(*arguments):
            with open(seen, "a") as file:
                file.write(f"{max(one['num_threads'] for one in threadpool_info() if one['user_api'] == 'blas')}\n")
            return change_norm(*arguments)

        change_norm, runner.change_norm = runner.change_norm, counted
        try:
            with threadpool_limits(limits=2, user_api="blas"):
                return guarded(stack)
        finally:
            runner.change_norm = change_norm

    monkeypatch.setattr(workers, "guarded" if jobs == 1 else "in_worker", watched)
    run_all(SOME, Store(tmp_path / "runs"), jobs)
    assert seen.read_text().split() == ["1"] * 3 * len(SOME)  # at steps 0, 2 and 4 of each


STACKABLE = [
    tiny.settings(lora_alpha=alpha, learning_rate=rate, lora_dropout=p, init_lora_weights=init)
    for alpha, init in ((2.0, "True"), (8.0, "zero_A"))
    for rate, p in ((1e-3, 0.0), (3e-3, 0.0), (1e-2, 0.0), (1e-3, 0.5), (1e-2, 0.5))
]


def test_stacks_hold_runs_that_differ_in_rate_alpha_dropout_and_init_alone():
    todo = [*SOME, *STACKABLE[:3], tiny.settings(method="full", r=0), *STACKABLE[3:], tiny.settings(seed=1)]
    made = stacks(todo)
    assert sorted(map(len, made)) == [1, 1, 1, 1, 1, 1, 2, runner.MAX_STACK]
    assert sorted(itertools.chain(*made), key=todo.index) == todo
    assert {len(stack) for stack in made if stack[0].method == "full"} == {1}


def test_a_result_is_the_same_to_the_bit_in_every_stack():
    """By itself, in any company, at any place: so what is stored depends on nothing that happened to be missing."""
    expected = [to_json(alone(settings)) for settings in STACKABLE]
    assert len(set(expected)) == len(expected)
    for company in (STACKABLE[:8], STACKABLE[::-1], STACKABLE[3:5], [STACKABLE[9], STACKABLE[0]]):
        found = [to_json(result) for result in execute(company)]
        assert found == [expected[STACKABLE.index(settings)] for settings in company]


@overflows
def test_a_run_that_diverges_leaves_its_stack_as_it_was():
    rates_and_dropout = ((1e-2, 0.0), (1e30, 0.0), (1e-2, 0.5))
    company = [
        tiny.settings(target_modules="all-linear", learning_rate=x, lora_dropout=p) for x, p in rates_and_dropout
    ]
    results = execute(company)
    assert [to_json(result) for result in results] == [to_json(alone(settings)) for settings in company]
    assert [result["diverged_at"] >= 0 for result in results] == [False, True, False]


def test_a_setting_that_matters_changes_the_result():
    """Else the runs above could be equal for not looking at their settings."""
    first = to_json(alone(SOME[0]))
    for name, value in [("seed", 1), ("r", 1), ("lora_alpha", 1.0), ("lora_dropout", 0.5), ("learning_rate", 1e-3),
                        ("batch_size", 4), ("n_train", 41), ("target_modules", "v_proj"), ("steps", 3),
                        ("evaluation_size", 21), ("evaluate_every", 1), ("task", "male"), ("layers", "1"),
                        ("base", "surnames_4_layers"), ("bias", "all"), ("init_lora_weights", "he"),
                        ("weight_decay", 0.5), ("schedule", "linear")]:  # fmt: skip
        assert to_json(alone(dataclasses.replace(SOME[0], **{name: value}))) != first, name


def test_modules_may_have_ranks_of_their_own_at_one_scale():
    config = runner.lora_config(tiny.settings(target_modules="q_proj:6+up_proj:3+v_proj", r=2, lora_alpha=8))
    ranks = {path: config.rank_of(f"layers.0.{path}") for path in ("q_proj", "up_proj", "v_proj")}
    assert ranks == {"q_proj": 6, "up_proj": 3, "v_proj": 2}
    assert {config.scaling_of(f"layers.0.{path}") for path in ranks} == {4.0}


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"layers": "all"}, "layers_to_transform", None),
        ({"layers": "0+1"}, "layers_to_transform", (0, 1)),
        ({"bias": "lora_only"}, "bias", "lora_only"),
        ({"init_lora_weights": "True"}, "init_lora_weights", True),
        ({"init_lora_weights": "False"}, "init_lora_weights", False),
        ({"init_lora_weights": "he"}, "init_lora_weights", "he"),
        ({"target_modules": "all-linear"}, "target_modules", "all-linear"),
        ({"target_modules": "q_proj+v_proj"}, "target_modules", ("q_proj", "v_proj")),
    ],
)
def test_settings_are_those_of_the_lora_config(changes, field, value):
    assert getattr(runner.lora_config(tiny.settings(**changes)), field) == value


# --- keys ---


def test_every_setting_changes_the_key(monkeypatch):
    first = tiny.settings()
    others = {str: "other", int: 7, float: 0.75}
    changed = [
        dataclasses.replace(first, **{field.name: "full" if field.name == "method" else others[field.type]})
        for field in dataclasses.fields(first)
    ]
    keys = {run_key(settings) for settings in (first, *changed)}
    assert len(keys) == 1 + len(changed)
    monkeypatch.setattr(store_module, "code_version", lambda: "another")
    assert run_key(first) not in keys


def test_equal_settings_have_equal_keys():
    assert run_key(tiny.settings()) == run_key(tiny.settings())
    whole, same = tiny.settings(lora_alpha=16), tiny.settings(lora_alpha=16.0)
    assert whole == same
    assert run_key(whole) == run_key(same)


def test_a_key_is_the_same_in_another_process():
    program = "from minilora.experiments.engine.store import *; print(run_key(Settings(**eval(input()))))"
    done = subprocess.run([sys.executable, "-c", program], input=repr(tiny.FIXED), capture_output=True, text=True,
                          check=True, env=os.environ | {"PYTHONHASHSEED": "7"})  # fmt: skip
    assert done.stdout.strip() == run_key(tiny.settings())


def test_the_code_version_changes_with_whatever_computes_a_result(monkeypatch):
    def anew():
        return provenance.code_version.__wrapped__()

    seen, getsource = {anew()}, inspect.getsource
    assert anew() in seen
    for changed in COMPUTED_BY:
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "getsource", lambda m, changed=changed: getsource(m) + "#" * (m is changed))
            seen.add(anew())
    for owner, name, value in [
        (np, "__version__", "99"),
        (provenance, "machine", dict),
        (provenance, "fingerprint", lambda params: "another base"),
        (provenance.names, "load_names", lambda table: ["mary"]),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            seen.add(anew())
    assert len(seen) == 1 + len(COMPUTED_BY) + 4


# --- the store ---


def test_stored_runs_are_not_done_again(store, executed):
    first = run_all(SOME, store, 1)
    assert executed == SOME
    again = run_all(SOME, store, 1)
    assert executed == SOME
    assert folder.table(again)[:] == folder.table(first)[:]
    assert [again[s]["samples"] for s in SOME] == [first[s]["samples"] for s in SOME]
    run_all([*SOME, tiny.settings(seed=9)], store, 1)
    assert executed == [*SOME, tiny.settings(seed=9)]


def test_results_come_in_the_order_asked_for_whatever_was_stored_first(store):
    run_all(SOME[2:3], store, 1)
    assert list(run_all(SOME, store, 1)) == SOME


def test_a_stored_run_says_what_it_is(store):
    run_all(SOME[:1], store, 1)
    assert json.loads(store.path(SOME[0]).read_text())["settings"] == dataclasses.asdict(SOME[0])


def test_nothing_is_stored_before_it_is_done(store):
    assert store.get(SOME[0]) is None
    assert not store.folder.exists()


RESULT = json.loads(to_json(alone(SOME[0])))
WHOLE = to_json(
    {"settings": dataclasses.asdict(SOME[0]), **RESULT, "sha256": store_module.checksum(SOME[0], RESULT)}
).encode()


@pytest.mark.parametrize(
    "content",
    [b"", WHOLE[:1], WHOLE[: len(WHOLE) // 2], WHOLE[:-3], b"\xff" + WHOLE, b"[]", b"{}", b"null",
     WHOLE.replace(b'"floor"', b'"flour"'), WHOLE.replace(b'"step"', b'"stop"'),
     WHOLE.replace(b'"seed": 0', b'"seed": 1'), WHOLE.replace(b'"floor": 0', b'"floor": "0"')],
    ids=lambda content: repr(content[:4] + content[-4:]),
)  # fmt: skip
def test_a_spoilt_file_is_done_again(store, executed, content):
    store.put(SOME[0], alone(SOME[0]))
    assert store.get(SOME[0]) is not None
    store.path(SOME[0]).write_bytes(content)
    assert store.get(SOME[0]) is None
    result = run_all(SOME[:1], store, 1)[SOME[0]]
    assert executed == SOME[:1]
    assert json.loads(to_json(result)) == RESULT
    assert store.path(SOME[0]).read_bytes() == WHOLE
    assert [path.read_bytes() for path in store.damaged] == [content], "set aside as it was"
    assert as_run(SOME[0], store.get(SOME[0])) == as_run(SOME[0], result)


def _stored(content, with_checksum=True):
    """A file with these changes, and unless it is left out a checksum that fits, as another program might write it."""
    result = RESULT | content
    more = {"sha256": store_module.checksum(SOME[0], result)} if with_checksum else {}
    return to_json({"settings": dataclasses.asdict(SOME[0]), **result, **more}).encode()


def _shorter(n):
    return {name: RESULT[name][:n] for name in MEASURED}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (WHOLE.replace(b"2.3", b"2.4", 1), "sha256: the numbers are not those that were stored"),
        (WHOLE.replace(b'"trainable": 2', b'"trainable": 3', 1), "sha256"),
        (WHOLE.replace(b'"samples": [\n    "', b'"samples": [\n    "x', 1), "sha256"),
        (_stored({}, with_checksum=False), "lacks 'sha256'"),
        (_stored(_shorter(2)), r"step: got \(0, 2\), takes \(0, 2, 4\)"),
        (_stored({"step": [0, 2, 2]}), "step: got"),
        (_stored({"step": [2, 0, 4]}), "step: got"),
        (_stored({"step": [0, 3, 4]}), "step: got"),
        (_stored({"diverged_at": 3}), r"step: got \(0, 2, 4\), takes \(0, 2\)"),
        (_stored(_shorter(2) | {"diverged_at": 5}), "diverged_at: got 5"),
        (_stored(_shorter(2) | {"diverged_at": 3}), "samples: got .*, takes a list of 0 names"),
        (_stored({"trainable": 0}), "trainable: got 0"),
        (_stored({"train_loss": [2.0, True, 2.0]}), "train_loss: got True, takes a finite number"),
        (_stored({"samples": []}), r"samples: got \[\], takes a list of 12 names"),
        (_stored({"samples": "annaannaanna"}), "samples: got 'annaannaanna'"),
        (_stored({"samples": [1] * 12}), "samples: got"),
    ],
)
def test_a_stored_run_that_is_not_whole_or_was_changed_is_set_aside_with_the_reason(store, content, why):
    assert content != WHOLE
    store.put(SOME[0], RESULT)
    store.path(SOME[0]).write_bytes(content)
    assert store.get(SOME[0]) is None
    ((path, said),) = store.damaged.items()
    assert path.read_bytes() == content
    assert re.match(why, said), said


def test_how_a_stored_file_is_laid_out_does_not_matter(store):
    """Git or an editor may change its line ends; the numbers are what counts."""
    store.put(SOME[0], RESULT)
    for content in (WHOLE.replace(b"\n", b"\r\n"), json.dumps(json.loads(WHOLE), sort_keys=True).encode()):
        store.path(SOME[0]).write_bytes(content)
        assert store.get(SOME[0]) == RESULT
    assert not store.damaged


@overflows
def test_what_was_measured_before_a_run_diverged_is_whole(store):
    settings = tiny.settings(**tiny.DIVERGES)
    assert store.put(settings, alone(settings)) == ""
    assert store.get(settings)["samples"] == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (_shorter(2), "step: got"),
        ({"train_loss": [2.0, float("nan"), 2.0]}, "train_loss: got nan, takes a finite number"),
        ({"floor": float("inf")}, "floor: got inf"),
        ({"floor": np.float32(1)}, "Object of type float32"),
        ({"samples": []}, "samples: got"),
    ],
    ids=str,
)
def test_what_is_no_result_is_not_stored_and_its_run_has_failed(store, monkeypatch, changes, why):
    """As from a worker with a fault of its own; the others go on."""
    execute = runner.execute
    monkeypatch.setattr(
        runner, "execute", lambda stack: [one | (changes if stack == SOME[:1] else {}) for one in execute(stack)]
    )
    told = []
    with pytest.raises(RunFailedError, match=rf"1 of 2 runs failed.*{SOME[0].label()}.*no result: .*{why}"):
        run_all(SOME[:2], store, 1, lambda settings, failed: told.append(failed))
    assert told == [True, False]
    assert not store.path(SOME[0]).exists()
    assert store.get(SOME[1]) is not None


def test_each_run_is_stored_and_told_as_soon_as_it_is_done(store):
    def told(settings, failed):
        stored.append([one for one in SOME if store.get(one) is not None])

    stored = []
    run_all(SOME, store, 1, told)
    assert stored == [SOME[:1], SOME[:2], SOME[:3], SOME]


def test_an_interruption_keeps_what_is_done(store, monkeypatch):
    def interrupted(stack):
        if stack == SOME[2:3]:
            raise KeyboardInterrupt
        return execute(stack)

    monkeypatch.setattr(runner, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(SOME, store, 1)
    assert [store.get(one) is not None for one in SOME] == [True, True, False, False]


# --- runs that fail or diverge ---


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_raises_is_told_and_the_others_are_stored(store, jobs):
    bad = tiny.settings(target_modules="no_such_module", seed=5)
    todo, told = [SOME[0], bad, SOME[1]], []
    with pytest.raises(RunFailedError, match=r"1 of 3 runs failed.*" + bad.label()) as caught:
        run_all(todo, store, jobs, lambda settings, failed: told.append(settings))
    assert "ValueError" in str(caught.value)
    assert "no_such_module" in str(caught.value)
    assert [store.get(one) is not None for one in todo] == [True, False, True]
    assert sorted(told, key=todo.index) == todo


@overflows
@pytest.mark.parametrize(
    "changes",
    [{}, {"steps": 1}, {"evaluate_every": 1}, {"steps": 3, "evaluate_every": 3}],
    ids=["between evaluations", "in the last step", "at an evaluation", "before the second evaluation"],
)
def test_a_run_that_diverges_is_stored_as_that(store, changes):
    """Wherever the loss is first seen not to be finite."""
    settings = tiny.settings(**tiny.DIVERGES | changes)
    run = as_run(settings, run_all([settings], store, 1)[settings])
    assert run.diverged
    assert run.diverged_at == 1
    assert np.isfinite([*run.train_loss, *run.validation_loss, *run.change_norm]).all()
    assert as_run(settings, store.get(settings)) == run
    assert run.best == run.final == np.inf


@overflows
def test_a_table_has_diverged_runs_beside_the_others(store):
    todo = [SOME[0], tiny.settings(**tiny.DIVERGES)]
    runs = folder.table(run_all(todo, store, 1))
    assert [run.settings for run in runs] == todo
    assert [run.diverged for run in runs] == [False, True]


def imported(name: str) -> set[str]:
    """minilora's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(name)))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minilora"):
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                found.add(inner if importlib.util.find_spec(node.module).submodule_search_locations
                          and importlib.util.find_spec(inner) else node.module)  # fmt: skip
    return found


def test_the_code_version_knows_every_module_that_computes():
    """All that the runner imports, and what that imports, but for what only checks, reads, names or records."""
    reached, new = set(), {runner.__name__}
    while new:
        reached |= new
        new = set().union(*map(imported, new)) - reached
    without_numbers = {"checks", "files", "tensors", "checkpoint", "peft_format", "data.base"}
    computing = {name for name in reached if not name.startswith("minilora.experiments")} | {runner.__name__}
    assert computing - {f"minilora.{name}" for name in without_numbers} == {one.__name__ for one in COMPUTED_BY}
