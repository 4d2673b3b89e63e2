"""`python -m minilora.experiments recipe`: what the ledger advises for an amount of data, each line with its claims."""

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilora.experiments.evidence.ledger import Row
from minilora.experiments.evidence.runs import BEST, FINAL, Runs, from_csv, tuned_rates
from minilora.experiments.pages.folder import read_claims

DONE, USAGE = 0, 2
RANK_STUDY = {"names": "rank", "planted": "planted_rank"}  # where each task's ranks were compared
NEAR = 0.01  # nats per letter: what a smaller rank or less dropout may cost


@dataclass(frozen=True)
class Evidence:
    """What advice is made of: the claims by id, and the runs of a study that were done on nearly as much data."""

    claims: dict[str, Row]
    folder: Path
    n_train: int
    task: str

    def nearest(self, study: str) -> tuple[Runs, int]:
        """(the LoRA runs of a study with the number of names next to what was asked for, that number)."""
        path = self.folder / f"{study}.csv"
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: `python -m minilora.experiments {study}` makes it")
        runs = from_csv(path.read_text(encoding="utf-8")).where(method="lora")
        if not runs:
            raise ValueError(f"{path}: holds no runs; `python -m minilora.experiments {study}` makes it anew")
        n = min(runs.values("n_train"), key=lambda one: abs(math.log(one / self.n_train)))
        return runs.where(n_train=n), n

    def verdict(self, claim: str) -> str:
        return self.claims[claim]["verdict"] if claim in self.claims else "not measured"


@dataclass(frozen=True)
class Advice:
    """A line: which knob, from which claims, and what to do; None where the ledger supports nothing."""

    knob: str
    claims: tuple[str, ...]
    text: Callable[[Evidence], str | None]


def _best_rank(evidence: Evidence) -> tuple[int, float, int]:
    """(the smallest rank within NEAR of the best one, its learning rate, on how many names)."""
    runs, n = evidence.nearest(RANK_STUDY[evidence.task])
    ranks = runs.values("r")
    losses = [float(np.mean(runs.tuned(BEST, r=r))) for r in ranks]
    r = next(r for r, loss in zip(ranks, losses, strict=True) if loss <= min(losses) + NEAR)
    rates = tuned_rates(runs.where(r=r))
    return r, max(set(rates), key=rates.count), n


def _rank(evidence: Evidence) -> str:
    r, _, n = _best_rank(evidence)
    return (
        f"r = {r}: the smallest within {NEAR:g} nats of the best rank on {n:,} names, each with its own learning rate"
    )


def _rate(evidence: Evidence) -> str:
    r, rate, n = _best_rank(evidence)
    text = f"{rate:g} at r = {r} and alpha = 2r on {n:,} names; try half a decade on either side"
    if evidence.verdict("L1") == "supported":
        text += f" ({evidence.claims['L1']['result']})"
    return text


def _dropout(evidence: Evidence) -> str | None:
    if evidence.verdict("D1") != "supported" or evidence.verdict("D3") != "supported":
        return None
    runs, n = evidence.nearest("dropout")
    tried = runs.values("lora_dropout")
    advised = []
    for metric, when in ((FINAL, "if you train to the end"), (BEST, "if you stop at the best step")):
        losses = [float(np.mean(runs.per_seed(metric, lora_dropout=p))) for p in tried]
        p = next(p for p, loss in zip(tried, losses, strict=True) if loss <= min(losses) + NEAR)
        advised.append(f"p = {p:g}{' (the largest tried)' if p == tried[-1] else ''} {when}")
    first = runs[0].settings
    where = f"on {n:,} names at r = {first.r}, rate {first.learning_rate:g}"
    return f"{', '.join(advised)}: the least within {NEAR:g} nats of the best {where}"


def _by_verdict(
    claim: str, supported: str, contradicted: str | None = None, part: int | None = None
) -> Callable[[Evidence], str | None]:
    """Advice that hangs on the verdict of a claim, or of one of its contrasts, with what was measured."""

    def text(evidence: Evidence) -> str | None:
        if claim not in evidence.claims:
            return None
        row = evidence.claims[claim] if part is None else evidence.claims[claim]["contrasts"][part]
        words = {"supported": supported, "contradicted": contradicted}.get(row["verdict"])
        where = "" if part is None else f"; this part of {claim} is {row['verdict']}"
        return None if words is None else f"{words} ({row['result']}{where})"

    return text


ADVICE = (
    Advice("rank", ("R2", "R3", "R4"), _rank),
    Advice("alpha", ("A3",), _by_verdict("A3", "alpha = 2r", "search alpha / r: 2 is not near the best")),
    Advice("learning rate", ("L1", "L2"), _rate),
    Advice(
        "learning rate", ("A4",), _by_verdict("A4", "lower it when you raise alpha", "no need to lower it with alpha")
    ),
    Advice(
        "learning rate", ("A2",),
        _by_verdict("A2", "keep it when r changes at alpha = 2r", "tune it again when r changes at alpha = 2r"),
    ),
    Advice("dropout", ("D1", "D2", "D3"), _dropout),
    Advice("modules", ("T1",), _by_verdict("T1", "q and v", "not q and v alone")),
    Advice("modules", ("T3",), _by_verdict("T3", "attention before the MLP", "the MLP before attention")),
    Advice("modules", ("T2",), _by_verdict("T2", "more modules if you can pay for them")),
    Advice("layers", ("Y1",), _by_verdict("Y1", "all layers")),
    Advice("init", ("I1", "I2"), _by_verdict("I2", "leave B (or A) at zero")),
    Advice("init", ("I3",), _by_verdict("I3", "He's or Xavier's scale for A", "leave the scale of A alone")),
    Advice("bias", ("B1",), _by_verdict("B1", "train biases where data is ample", "leave biases frozen")),
    Advice("batch size", ("S1",), _by_verdict("S1", "larger where steps are what is short", part=0)),
    Advice("batch size", ("S1",), _by_verdict("S1", "smaller where names are", "not smaller to save epochs", part=1)),
    Advice("weight decay", ("W1",), _by_verdict("W1", "some, where data is scarce and training is long")),
    Advice("epochs", ("E1",), _by_verdict("E1", "stop when validation loss no longer falls", part=1)),
    Advice("search", ("G1",), _by_verdict("G1", "Bayesian")),
)  # fmt: skip


def lines(evidence: Evidence) -> list[str]:
    """The advice, and at its end what the ledger does not decide."""
    made, open_questions = [], []
    for advice in ADVICE:
        text = advice.text(evidence)
        verdicts = ", ".join(f"{claim} {evidence.verdict(claim)}" for claim in advice.claims)
        if text is None:
            open_questions.append(f"{advice.knob} ({verdicts})")
            continue
        body = [*textwrap.wrap(text, 96), f"[{verdicts}]"]
        made += [f"{advice.knob if i == 0 else '':15}{line}" for i, line in enumerate(body)]
    if open_questions:
        made += [
            "",
            *textwrap.wrap("No advice, as the ledger does not decide it: " + "; ".join(open_questions) + ".", 111),
        ]
    return made


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.experiments recipe", description=__doc__.partition(": ")[2]
    )
    parser.add_argument("--n-train", type=int, required=True, metavar="N", help="names to train on")
    parser.add_argument("--task", default="names", choices=sorted(RANK_STUDY), help="default: names")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), metavar="DIR", help="where the ledger is (default: figures)"
    )
    options = parser.parse_args(arguments)
    if options.n_train < 1:
        parser.error(f"argument --n-train: got {options.n_train}, takes an integer of at least 1")
    try:
        rows = read_claims(options.out)
        if not rows:
            raise FileNotFoundError(
                f"{options.out / 'claims.json'} is not there: `python -m minilora.experiments all` makes it"
            )
        evidence = Evidence({row["id"]: row for row in rows}, options.out, options.n_train, options.task)
        text = lines(evidence)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    print(f"For {options.n_train:,} names (task {options.task}), from {options.out / 'claims.json'}:\n")
    print("\n".join(text))
    return DONE
