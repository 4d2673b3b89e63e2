"""The ledger as a page: CLAIMS.md, and the table of verdicts in README.md."""

from collections.abc import Iterable, Sequence

from minilora.experiments.evidence.ledger import Row, all_contrasts, result_text

QUICK_NOTE = (
    "This is the quick version: few settings, few steps, and mostly one learning rate, so that nothing is tuned."
)
RULE = """\
Written by `python -m minilora.experiments`. Effects are means over paired seeds with 95 % intervals (Student's t),
positive in the predicted direction. *Supported*: the whole interval lies beyond the smallest effect worth having, which
was written down before the run. *Contradicted*: it lies wholly on the other side of zero. *Inconclusive* otherwise.
A claim of several contrasts holds if all of them do; its line shows the contrast that decides. Where a verdict does not
survive Holm's correction for the number of claims, that is said beside it.
"""


def ledger_page(rows: Sequence[Row], samples: dict[str, dict[str, list[str]]]) -> str:
    """CLAIMS.md."""
    parts = ["# What the article says, and what we measured", RULE.strip()]
    if any("--quick" in row["command"] for row in rows):
        parts.append(QUICK_NOTE)
    parts += ["![All claims, their effects and verdicts](overview.svg)", claims_table(rows)]
    parts += ["## Each contrast", contrasts_table(all_contrasts(rows))]
    otherwise = variants_table(all_contrasts(rows))
    if otherwise:
        parts += ["## The same contrasts, measured otherwise", OTHERWISE.strip(), otherwise]
    parts += ["## Where it was measured", _regimes(rows)]
    for study, written in samples.items():
        parts.append(f"## What the models of the study `{study}` write")
        parts.append(
            "\n".join(f"- {label.replace(chr(10), ' ')}: {', '.join(names)}" for label, names in written.items())
        )
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; empty where there are no lines."""
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(header) + " |", "| --- " * len(header) + "|", *body]) if body else ""


def _verdict_words(row: Row) -> str:
    """The verdict, with what qualifies it."""
    text = f"**{row['verdict']}**"
    if row["verdict"] != row["verdict_holm"]:
        text += f" (after Holm {row['verdict_holm']})"
    n, same = len(row["contrasts"]), sum(one["verdict"] == row["verdict"] for one in row["contrasts"])
    return text if same == n else f"{text} ({n - same} of {n} contrasts otherwise)"


def _paper_words(row: Row) -> str:
    paper = row["paper"]
    return f"{paper['agreement']}: {paper['reported']} ({paper['source']})" if paper else ""


def claims_table(rows: Sequence[Row]) -> str:
    """A line a claim."""
    return _table(
        ["claim", "statement", "what decides it", "verdict", "papers", "figure", "makes this row"],
        [
            [row["id"], row["statement"], row["result"], _verdict_words(row), _paper_words(row),
             f"[{row['study']}]({row['figure']})", f"`{row['command']}`"]
            for row in rows
        ],
    )  # fmt: skip


def contrasts_table(contrasts: Sequence[Row]) -> str:
    """A line a contrast, with its numbers; the bootstrap's where they would give another verdict."""
    lines = []
    for row in contrasts:
        measured = result_text(row)
        if row["verdict_bootstrap"] != row["verdict"]:
            low, high = row["interval_bootstrap"]
            measured += f"; bootstrap [{low:.3f}, {high:.3f}]: {row['verdict_bootstrap']}"
        lines.append([row["id"], row["prediction"], f"{row['smallest_effect']:g}", measured, str(row["n_seeds"]),
                      row["verdict"], f"[{row['study']}]({row['figure']})"])  # fmt: skip
    return _table(["claim", "prediction", "smallest effect", "measured", "seeds", "verdict", "figure"], lines)


OTHERWISE = """\
Above, each learning rate is tuned where several were tried, unless the prediction or its regime names one: the one with
the lowest best validation loss (that of early stopping), on the mean over the other seeds.
"""


def variants_table(contrasts: Sequence[Row]) -> str:
    """The same contrasts, measured otherwise; nothing where that comes to the same, as where nothing is tuned."""
    return _table(
        ["claim", "study", "as above", "otherwise", "measured", "verdict it would give"],
        [
            [row["id"], row["study"], result_text(row), label, result_text(row | other), other["verdict"]]
            for row in contrasts
            for label, other in row["variants"].items()
            if other["interval"] != row["interval"]
        ],
    )


def _regimes(rows: Sequence[Row]) -> str:
    contrasts = all_contrasts(rows)
    return "\n".join(dict.fromkeys(f"- **{row['id']}** ({row['study']}): {row['regime']}" for row in contrasts))


def verdict_summary(rows: Sequence[Row]) -> str:
    """The table of README.md: a line a claim."""
    lines = [
        [f"[{row['id']}](figures/{row['figure']})", row["statement"], row["result"], _verdict_words(row)]
        for row in rows
    ]
    return _table(["claim", "statement", "what decides it (+- half the 95 % interval)", "verdict"], lines) + "\n"
