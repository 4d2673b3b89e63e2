"""Writes the tables of README.md beside this file from the measurements in results/.

python tests/bench/tables.py
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def size_of(row: dict) -> str:
    return f"{row['d_model']}, {row['n_layers']}, {row['batch']}"


def step(rows: list[dict]) -> str:
    """ms a step by implementation, and what part of each minilora takes."""
    peers = ("autograd", "peft", "jax.jit")
    names = ["plain autograd", "PEFT on PyTorch", "jax.jit"]
    header = ["d_model, layers, batch", "minilora", *names, "matrix products alone", *(f"of {name}" for name in names)]
    return table(
        header,
        [
            [size_of(row), *(f"{row['ms'][name]:.2f}" for name in ("minilora", *peers, "products"))]
            + [f"{row['ratio'][name]:.2f}" for name in peers]
            for row in rows
        ],
    )


def aims(rows: list[dict]) -> str:
    """Where the aims are met."""
    lines = ["Aims, and where they are met:", ""]
    for name, shown, aim in (("peft", "PEFT on PyTorch", 0.6), ("jax.jit", "jax.jit", 1.0)):
        ratios = [round(row["ratio"][name], 2) for row in rows]
        n_met = sum(ratio <= aim for ratio in ratios)
        lines.append(
            f"- at most {aim} of {shown}: at {n_met} of {len(rows)} sizes; it is {min(ratios)} to {max(ratios)}."
        )
    part = rows[-1]["ms"]["products"] / rows[-1]["ms"]["peft"]
    lines.append(f"- The matrix products alone take {part:.2f} of PEFT's time at the largest size.")
    return "\n".join(lines) + "\n"


def sweep(found: dict) -> str:
    """Runs per minute."""
    names = {"fit_stack": "minilora, `fit_stack`", "fit": "minilora, `fit`", "peft": "PEFT on PyTorch"}
    rows = [
        [
            shown,
            f"{found['runs_per_minute'][name]:.0f}",
            f"{found['ratio'][name]:.2f}" if name in found["ratio"] else "",
        ]
        for name, shown in names.items()
    ]
    return table(["by", "runs a minute", "`fit_stack` does so many times as many"], rows)


def profile(rows: list[dict]) -> str:
    """Share of each operation, and of what is in them."""
    header = ["ms a step", *(size_of(row) for row in rows)]
    shown = [["**all**", *(f"**{row['total']:.2f}**" for row in rows)]]
    for name in rows[0]["operations"]:
        parts = [row["operations"][name] for row in rows]
        shown.append([f"`{name}`", *(f"{forward:.2f} + {backward:.2f}" for forward, backward in parts)])
    rest = [row["total"] - sum(map(sum, row["operations"].values())) for row in rows]
    shown.append(["outside of operations", *(f"{ms:.2f}" for ms in rest)])
    for name, what in (
        ("products", "of it, matrix products alone"),
        ("tape", "of it, the tape"),
        ("fixed", "a step on one token"),
    ):
        shown.append([what, *(f"{row[name]:.2f}" for row in rows)])
    return table(header, shown)


def growth(found: dict) -> str:
    """Times and exponents."""
    rows = []
    for name, one in found["growth"].items():
        times = ", ".join(f"{size}: {ms:.2f}" for size, ms in zip(one["sizes"], one["ms"], strict=True))
        rows.append([f"`{name}`", times, f"{one['exponent']:.2f}", f"{one['exponent_of_the_largest']:.2f}"])
    return table(["varied", "ms a step", "exponent", "between the two largest"], rows)


def product(found: dict) -> str:
    """Microseconds of LoRA's second product by rank."""
    ranks = list(found["minilora"])
    rows = [[way, *(f"{us:.1f}" for us in of_rank.values())] for way, of_rank in found.items()]
    ratios = [f"{of_rank['1'] / of_rank['2']:.1f}" for of_rank in found.values()]
    header = ["microseconds", *(f"r = {r}" for r in ranks), "r = 1 over r = 2"]
    return table(header, [[*row, ratio] for row, ratio in zip(rows, ratios, strict=True)])


def memory(found: dict) -> str:
    """What a process holds."""
    held = found["memory_mb"]
    return table(["steps done", *(f"{int(n):,}" for n in held)], [["MB held", *(f"{mb:.1f}" for mb in held.values())]])


SOURCES = {
    step: "step",
    aims: "step",
    sweep: "sweep",
    profile: "profile",
    growth: "growth",
    product: "product",
    memory: "growth",
}


def filled(text: str) -> str:
    """The text with every table made anew from its measurements."""
    for make, source in SOURCES.items():
        measured = json.loads((FOLDER / "results" / f"{source}.json").read_text(encoding="utf-8"))
        opening, closing = f"<!-- {make.__name__} -->\n", f"<!-- /{make.__name__} -->"
        before, _, rest = text.partition(opening)
        _, _, after = rest.partition(closing)
        text = before + opening + make(measured) + closing + after
    return text


if __name__ == "__main__":
    page = FOLDER / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
