"""What the command says while it works."""

import sys

import pytest

from minilora.experiments.engine import progress, runner
from minilora.experiments.engine.progress import Progress, cost, costs
from minilora.experiments.engine.store import Store
from minilora.experiments.engine.workers import run_all

from .. import tiny

TODO = {"one": [tiny.settings(seed=seed) for seed in range(4)], "two": [tiny.settings(seed=0), tiny.settings(r=2)]}


@pytest.fixture
def clock(monkeypatch):
    """The time that `progress` sees; `clock.now` sets it."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_every_run_that_is_left_has_a_cost_and_counts_once():
    todo = {one for runs in TODO.values() for one in runs}
    assert costs(TODO, todo).keys() == todo
    assert costs(TODO, set()) == {}
    stacked = runner.stacks(TODO["one"])
    assert sum(costs({"one": TODO["one"]}, todo).values()) == pytest.approx(sum(map(cost, stacked)))


def test_more_steps_names_or_blocks_cost_more():
    plain = cost([tiny.settings()])
    for more in (
        tiny.settings(steps=8),
        tiny.settings(batch_size=16),
        tiny.settings(evaluation_size=40),
        tiny.settings(base="surnames_4_layers"),
    ):
        assert cost([more]) > plain
    alike = [tiny.settings(learning_rate=rate) for rate in (1e-3, 1e-2)]
    assert plain < cost(alike) < 2 * plain, "done at once they share what a step costs whatever its batch"


def test_time_left_goes_by_cost_not_by_number_of_runs(tmp_path, clock, capsys):
    first, slow, quick = tiny.settings(), tiny.settings(steps=4000), [tiny.settings(seed=seed) for seed in range(1, 9)]
    with Progress({"tiny": [first, slow, *quick]}, Store(tmp_path)) as shown:
        done = shown.starting(tiny.STUDIES["tiny"])
        assert shown.seconds_left() is None
        clock.now = 5.0  # starting the processes
        done(first, False)
        assert shown.seconds_left() is None, "nothing is known before the second run"
        clock.now = 15.0
        done(slow, False)
        rest = sum(cost([one]) for one in quick) / cost([slow])
        assert shown.seconds_left() == pytest.approx(10 * rest)
        for one in quick:
            done(one, False)
        assert shown.seconds_left() == pytest.approx(0.0)


def test_lines_where_there_is_no_terminal(tmp_path, clock, capsys):
    n = iter([2, 2, 1, 1])
    todo = [tiny.settings(seed=seed) for seed in range(5)]
    store = Store(tmp_path)
    run_all(todo[:1], store, 1)
    with Progress({"tiny": todo}, store, lambda: next(n)) as shown:
        done = shown.starting(tiny.STUDIES["tiny"])
        for now, settings, failed in ((10.0, todo[1], False), (40.0, todo[2], True), (60.0, todo[3], False)):
            clock.now = now  # 20 seconds after a line is too soon for another
            done(settings, failed)
    assert capsys.readouterr().out.splitlines() == [
        "5 runs in 1 study; 1 are stored already, 4 to do, on 2 workers",
        "tiny: 2 of 4 runs done, about 1 min 0 s left, 1 failed, on 1 worker",
    ]


def test_a_bar_where_there_is_one(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    todo = [tiny.settings(seed=seed) for seed in range(3)]
    with Progress({"tiny": todo}, Store(tmp_path)) as shown:
        done = shown.starting(tiny.STUDIES["tiny"])
        clock.now = 10.0
        done(todo[0], False)
        clock.now = 70.0
        done(todo[1], True)
        shown.bar.refresh()
    bar = capsys.readouterr().err.split("\r")[-1].strip()
    assert bar.startswith("tiny")
    assert "2 of 3 runs" in bar
    assert "about 1 min 0 s left, 1 failed" in bar
