"""`python -m minilora.experiments recipe`: what the ledger advises for an amount of data, each line with its claims."""

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minilora
from minilora.command_line import DONE, Parser, UsageError, check_file, in_a_line, integer, write_file
from minilora.experiments.pages.findings import RANK_STUDY, Findings, extract, shipped
from minilora.files import to_json

NEAR = 0.01  # nats per letter: what a smaller rank or less dropout may cost


@dataclass(frozen=True)
class Evidence:
    """What was found, and what it is asked for."""

    found: Findings
    n_train: int
    task: str

    def nearest(self, sizes: list[dict[str, Any]]) -> dict[str, Any]:
        """What was found with the number of names next to what is asked for."""
        return min(sizes, key=lambda one: abs(math.log(one["n_train"] / self.n_train)))

    def verdict(self, claim: str) -> str:
        return self.found["claims"].get(claim, {"verdict": "not measured"})["verdict"]

    def beyond(self) -> str:
        """A sentence where the number of names is not among those that were measured, nor between them."""
        sizes = [one["n_train"] for one in (*self.found["ranks"][self.task], *self.found["dropout"])]
        if min(sizes) <= self.n_train <= max(sizes):
            return ""
        nearest = min(sizes) if self.n_train < min(sizes) else max(sizes)
        return (
            f"Measured was from {min(sizes):,} to {max(sizes):,} names. {self.n_train:,} lie beyond: this is the "
            f"advice for {nearest:,}."
        )


@dataclass(frozen=True)
class Advice:
    """A line: which knob, from which claims, and what to do; None where the ledger supports nothing."""

    knob: str
    claims: tuple[str, ...]
    text: Callable[[Evidence], str | None]


def _best_rank(evidence: Evidence) -> tuple[int, float, int]:
    """(the smallest rank within NEAR of the best one, its learning rate, on how many names)."""
    size = evidence.nearest(evidence.found["ranks"][evidence.task])
    least = min(one["loss"] for one in size["tried"])
    best = next(one for one in size["tried"] if one["loss"] <= least + NEAR)
    return best["r"], best["learning_rate"], size["n_train"]


def _rank(evidence: Evidence) -> str:
    r, _, n = _best_rank(evidence)
    return (
        f"r = {r}: the smallest within {NEAR:g} nats of the best rank on {n:,} names, each with its own learning rate"
    )


def _rate(evidence: Evidence) -> str:
    r, rate, n = _best_rank(evidence)
    text = f"{rate:g} at r = {r} and alpha = 2r on {n:,} names; try half a decade on either side"
    if evidence.verdict("L1") == "supported":
        text += f" ({evidence.found['claims']['L1']['result']})"
    return text


def _dropout(evidence: Evidence) -> str | None:
    if evidence.verdict("D1") != "supported" or evidence.verdict("D3") != "supported":
        return None
    size, advised = evidence.nearest(evidence.found["dropout"]), []
    for name, when in (("final", "if you train to the end"), ("best", "if you stop at the best step")):
        least = min(one[name] for one in size["tried"])
        p = next(one["p"] for one in size["tried"] if one[name] <= least + NEAR)
        advised.append(f"p = {p:g}{' (the largest tried)' if p == size['tried'][-1]['p'] else ''} {when}")
    where = f"on {size['n_train']:,} names at r = {size['r']}, rate {size['learning_rate']:g}"
    return f"{', '.join(advised)}: the least within {NEAR:g} nats of the best {where}"


def _by_verdict(
    claim: str, supported: str, contradicted: str | None = None, part: int | None = None
) -> Callable[[Evidence], str | None]:
    """Advice that hangs on the verdict of a claim, or of one of its contrasts, with what was measured."""

    def text(evidence: Evidence) -> str | None:
        row = evidence.found["claims"].get(claim)
        if row is None or len(row["contrasts"]) <= (part or 0):
            return None
        row = row if part is None else row["contrasts"][part]
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


def parser() -> Parser:
    """The command line's options."""
    made = Parser(
        "python -m minilora.experiments recipe", __doc__.partition(": ")[2], failed="the ledger cannot be read"
    )
    made.add_argument("--n-train", type=integer(1), metavar="N", help="names to train on")
    made.add_argument("--task", default="names", choices=sorted(RANK_STUDY), help="default: names")
    made.add_argument("--out", type=Path, metavar="DIR", help="where the ledger is (default: what ships with minilora)")
    made.add_argument("--extract", type=Path, metavar="FILE", help="write what the advice is made of there, and stop")
    return made


def main(arguments: list[str]) -> int:
    """Print the advice for an amount of data; the exit status. A part of the command of the experiments."""
    options = parser().parse_args(arguments)
    if (options.n_train is None) == (options.extract is None):
        raise UsageError("takes --n-train N, or --extract FILE")
    if options.out is not None and not options.out.is_dir():
        raise UsageError(f"--out: {options.out} is not there")
    if options.extract is not None:
        check_file("--extract", options.extract)
        write_file(options.extract, to_json(shipped() if options.out is None else extract(options.out)))
        return DONE
    try:
        found = shipped() if options.out is None else extract(options.out, (options.task,))
    except FileNotFoundError as error:
        raise UsageError(f"--out: {in_a_line(error)}") from error
    evidence = Evidence(found, options.n_train, options.task)
    ledger = f"what ships with minilora {minilora.__version__}" if options.out is None else options.out / "claims.json"
    print(f"For {options.n_train:,} names (task {options.task}), from {ledger}:")
    print("\n".join([evidence.beyond(), "", *lines(evidence)] if evidence.beyond() else ["", *lines(evidence)]))
    return DONE
