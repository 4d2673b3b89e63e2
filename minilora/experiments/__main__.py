"""The command: `python -m minilora.experiments [STUDY ...]`."""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from minilora.checks import nearest
from minilora.command_line import (
    DONE,
    FAILED,
    INTERRUPTED,
    Parser,
    UsageError,
    check_folder,
    command,
    complain,
    in_a_line,
    integer,
    leave,
)
from minilora.conditions import blas_can_be_held
from minilora.experiments.evidence.rehearsal import rehearse
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.stats import N_SEEDS
from minilora.experiments.evidence.study import Study, StudyError
from minilora.experiments.studies import load_studies
from minilora.files import remove_abandoned

MOST_SEEDS = 10_000  # more would fill the memory with settings before the first run


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    made = Parser(
        "python -m minilora.experiments",
        "Run studies of what LoRA's parameters do, and write figures, numbers and verdicts. "
        "`recipe --n-train N` says what they advise.",
        failed="something failed or differs",
    )
    made.add_argument(
        "studies", nargs="*", metavar="STUDY", help="studies to run, or 'all' (default: the headline studies)"
    )
    made.add_argument("--list", action="store_true", help="list the studies and stop")
    made.add_argument("--quick", action="store_true", help="a small version, into figures/quick")
    made.add_argument(
        "--seeds",
        type=integer(1, MOST_SEEDS),
        default=None,
        metavar="N",
        help=f"paired seeds (default: the study's own, at least {N_SEEDS})",
    )
    made.add_argument("--jobs", type=integer(1), default=None, metavar="N", help="processes (default: one a core)")
    made.add_argument("--dask", default=None, metavar="ADDRESS", help="do the runs on this Dask scheduler's workers")
    made.add_argument("--out", type=Path, default=None, metavar="DIR", help="where to write (default: figures)")
    made.add_argument("--check", action="store_true", help="run again from scratch and compare with what is in DIR")
    made.add_argument("--fresh", action="store_true", help="do runs again that are stored already")
    return made


@command
def main(arguments: list[str]) -> int:
    """Do what the arguments ask for; the exit status."""
    if arguments[:1] == ["recipe"]:
        from minilora.experiments.pages import recipe

        return recipe.main(arguments[1:])
    options = parser().parse_args(arguments)
    out = options.out or Path("figures/quick" if options.quick else "figures")
    studies = prepared(options, out)
    if options.list:
        return list_studies(studies, options)
    try:
        return check_studies(studies, options, out) if options.check else run_studies(studies, options, out)
    except KeyboardInterrupt:
        complain(f"interrupted: {how_to_go_on(options, out)}")
        return INTERRUPTED


def prepared(options: argparse.Namespace, out: Path) -> list[Study]:
    """The studies that were asked for; UsageError or StudyError for what would not work, before anything runs."""
    check_drawing()
    try:
        chosen = list(load_studies().values()) if options.list and not options.studies else choose(options.studies)
        if options.list:
            return chosen
        for study in chosen:
            rehearse(study)
    except StudyError as error:
        raise UsageError(in_a_line(error)) from error
    if options.check and not out.is_dir():
        raise UsageError(f"--check: {out} is not there: nothing to compare with")
    if not options.check:
        check_folder("--out", out)
    return chosen


def check_drawing() -> None:
    """UsageError where matplotlib cannot be imported, as with a MPLBACKEND that it does not know: all studies draw."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise
    except Exception as error:
        backend = os.environ.get("MPLBACKEND")
        if backend and repr(backend) in str(error):
            raise UsageError(
                f"MPLBACKEND: got {backend!r}, takes a backend of matplotlib, or nothing: figures are drawn without one"
            ) from error
        raise UsageError(f"matplotlib cannot be imported: {in_a_line(error)}") from error


def how_to_go_on(options: argparse.Namespace, out: Path) -> str:
    """What Ctrl-C left behind."""
    if options.check:
        return "nothing of a --check is kept; the same command starts again"
    command = "the command without --fresh" if options.fresh else "the same command"
    return f"every finished run is stored in {out / 'runs'}; {command} goes on from there"


def choose(names: Sequence[str]) -> list[Study]:
    """The studies of these names; UsageError for one that does not exist, with the nearest that does."""
    known = load_studies()
    for name in names:
        if name not in (*known, "all"):
            raise UsageError(f"STUDY: unknown study {name!r}{nearest(name, known)}; takes {', '.join(known)}, or all")
    if "all" in names:
        return list(known.values())
    if not names:
        return [study for study in known.values() if study.headline]
    return [known[name] for name in dict.fromkeys(names)]


def list_studies(studies: Sequence[Study], options: argparse.Namespace) -> int:
    """Print name, size, claims and question of each."""
    for study in studies:
        n_runs = len(runs_of(study, options))
        claims = ", ".join(dict.fromkeys(contrast.claim for contrast in study.contrasts))
        print(f"{study.name:16}{n_runs:5} runs  {claims:16}{study.question}")
    return DONE


def runs_of(study: Study, options: argparse.Namespace) -> list[Settings]:
    """The runs that were asked for."""
    return study.runs(range(options.seeds or study.n_seeds), options.quick)


def run_studies(studies: Sequence[Study], options: argparse.Namespace, out: Path) -> int:
    """Run each study and write its files as soon as it ends; DONE, or FAILED if runs of one failed."""
    from minilora.experiments.engine.progress import Progress
    from minilora.experiments.engine.store import Store
    from minilora.experiments.engine.workers import RunFailedError
    from minilora.experiments.evidence.ledger import claim_rows, in_order
    from minilora.experiments.pages import folder

    folder.check_folder(out)  # what cannot be added to is better known now
    for place in (out, out / "runs"):
        remove_abandoned(place)
    store = Store(out / "runs", options.fresh)
    rows, status = [], DONE  # the contrasts of these studies
    todo = {study.name: runs_of(study, options) for study in studies}
    with cluster_of(options) as cluster, Progress(todo, store, cluster and cluster.n_workers) as progress:
        if not blas_can_be_held():
            progress.say("warning: no BLAS that can be held to one thread: slower, and the last bits may be others")
        for study in studies:
            try:
                rows += run_study(study, todo[study.name], store, cluster, progress, options, out)
            except RunFailedError as error:
                progress.say(f"{study.name}: {in_a_line(error)}; no figure made")
                status = FAILED
            except StudyError as error:
                progress.say(f"{in_a_line(error)}; its runs are stored, its files as they were")
                status = FAILED
    folder.print_verdicts(claim_rows(in_order(rows)))
    if rows:
        with one_at_a_time(out):
            folder.write_overview(out)
    return status


def run_study(study: Study, todo: Sequence[Settings], store, cluster, progress, options, out: Path) -> list[dict]:
    """Do the runs of a study that are not stored, write its files, and say so; its contrasts with their numbers."""
    import joblib

    from minilora.experiments.engine.workers import run_all
    from minilora.experiments.pages import folder

    started = time.perf_counter()
    results = run_all(todo, store, options.jobs or joblib.cpu_count(), progress.starting(study), cluster)
    progress.writing(study)
    runs, samples = folder.table(results), folder.samples_of(study, results)
    seconds = time.perf_counter() - started
    with one_at_a_time(out):
        took = seconds if progress.n_new else None
        rows = folder.write_study(study, runs, samples, out, _flags(options), took)
    progress.finished(study, runs, out, seconds)
    for line in folder.sample_lines(samples):
        progress.say(line)
    return rows


def cluster_of(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    """The cluster that was asked for, or None for this machine; closed at the end."""
    if options.dask is None:
        return contextlib.nullcontext()
    from minilora.experiments.engine.cluster import Cluster

    return Cluster(options.dask)


def one_at_a_time(out: Path):
    """A lock on what several commands would write to one folder; held while files are read and written."""
    from filelock import FileLock

    (out / "runs").mkdir(parents=True, exist_ok=True)
    return FileLock(out / "runs" / "lock")


def _flags(options: argparse.Namespace) -> str:
    """The options that decide the numbers, as one would type them."""
    return (" --quick" if options.quick else "") + (f" --seeds {options.seeds}" if options.seeds else "")


def check_studies(studies: Sequence[Study], options: argparse.Namespace, out: Path) -> int:
    """Run from scratch in a folder that goes away, and compare; DONE if nothing differs."""
    from minilora.experiments.pages.check import compare

    with tempfile.TemporaryDirectory(prefix="minilora-check-") as folder:
        status = run_studies(studies, options, Path(folder))
        if status != DONE:
            return status
        comparisons = {study.name: compare(study, out, Path(folder)) for study in studies}
    print()
    for name, found in comparisons.items():
        print(f"{'same  ' if found.same else 'DIFFERS'} {name}: {found.text}")
    return DONE if all(found.same for found in comparisons.values()) else FAILED


if __name__ == "__main__":
    leave(main())
