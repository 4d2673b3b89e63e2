"""Writes the tables of README.md beside this file from the measurements in results/.

python tests/bench/tables.py
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def size_of(row: dict) -> str:
    return f"{row['d_model']}, {row['n_layers']}, {row['batch']}"


PEERS = {"autograd": "plain autograd", "peft": "PEFT on PyTorch", "jax.jit": "jax.jit"}


def step(found: dict) -> str:
    """ms a step by implementation, and what part of each minilora takes."""
    shown = PEERS.values()
    header = ["d_model, layers, batch", "minilora", *shown, "matrix products alone", *(f"of {name}" for name in shown)]
    return table(
        header,
        [
            [size_of(row), *(f"{row['ms'][name]:.2f}" for name in ("minilora", *PEERS, "products"))]
            + [f"{row['ratio'][name]:.2f}" for name in PEERS]
            for row in found["sizes"]
        ],
    )


def names(found: dict) -> str:
    """The same on batches of names."""
    shown = PEERS | {"jax.jit": "jax.jit, each shape compiled", "jax.jit padded": "jax.jit, padded to the longest name"}
    ms, ratio = found["names"]["ms"], found["names"]["ratio"]
    rows = [[shown[name], f"{ms[name]:.2f}", f"{ratio[name]:.2f}"] for name in shown]
    return table(["by", "ms a step", "minilora takes of it"], [["minilora", f"{ms['minilora']:.2f}", ""], *rows])


SWEEPS = {"fit_stack": "minilora, `fit_stack`", "fit": "minilora, `fit`", "peft": "PEFT on PyTorch"}


def sweep(found: dict) -> str:
    """Runs per minute, and what a sweep costs beside."""
    times = times_as_many(found)
    header = ["by", "runs a minute", "`fit_stack` does so many times as many", "s of compiling beside"]
    header += ["MB at the peak", "validation loss at the end"]
    rows = []
    for name, one in found.items():
        compiling = sum(one["compile_seconds"])
        rows.append([SWEEPS.get(name, f"JAX, `{name}`"), f"{one['runs_per_minute']:.0f}"])
        rows[-1] += ["" if name == "fit_stack" else f"{times[name]:.2f}", f"{compiling:.0f}" if compiling else ""]
        rows[-1] += [f"{one['peak_mb']:.0f}", f"{one['mean_loss']:.3f}"]
    return table(header, rows)


def times_as_many(found: dict) -> dict[str, float]:
    """{name: runs a minute of `fit_stack` over its}."""
    return {name: found["fit_stack"]["runs_per_minute"] / one["runs_per_minute"] for name, one in found.items()}


def wall(found: dict) -> str:
    """Seconds of whole commands."""
    rows = []
    for command, one in found["commands"].items():
        seconds = [f"{statistics.median(one['seconds'][name]):.1f}" for name in ("this", "beside")]
        shown = f"`python -m minilora.experiments {command}`"
        rows.append([shown, f"{one['runs']:,}", *seconds, f"{one['ratio']:.2f}"])
    return table(["command", "runs", f"{found['this']}, s", f"{found['beside']}, s", "ratio"], rows)


STEP_AIMS = {"jax.jit": (0.80, 0.92, 0.83, 0.98), "peft": (0.42, 0.54, 0.60, 0.74)}  # at most, at the four sizes
NAMES_AIMS = {"jax.jit": 0.60, "peft": 0.40}  # at most
SWEEP_AIMS = {"peft": 6.0, "jit(vmap(scan))": 2.2}  # at least
BEST_JAX_AIM = 1.8  # at least, times what JAX does in the form that is fastest for it
WALL_AIMS = {"all --quick": 0.60, "all": 0.60}  # at most


def aims(steps: dict, runs: dict, whole: dict) -> str:
    """What was aimed at, what was found, and whether that meets it."""
    ratio, times = steps["names"]["ratio"], times_as_many(runs)
    ratio["jax.jit"] = max(ratio["jax.jit"], ratio["jax.jit padded"])  # the form that is faster for it
    best_jax = min(times[name] for name in runs if name.startswith("jit"))
    rows = [
        aim(f"a step, of {PEERS[name]}'s", aimed, [row["ratio"][name] for row in steps["sizes"]])
        for name, aimed in STEP_AIMS.items()
    ]
    rows += [aim(f"a step on names, of {PEERS[name]}'s", [most], [ratio[name]]) for name, most in NAMES_AIMS.items()]
    rows += [
        aim(f"runs of the sweep, times those of {PEERS.get(name, name)}", [least], [times[name]], at_least=True)
        for name, least in SWEEP_AIMS.items()
    ]
    rows.append(aim("runs of the sweep, times those of JAX at its best", [BEST_JAX_AIM], [best_jax], at_least=True))
    rows += [
        aim(f"`{command}`, of {whole['beside']}'s", [WALL_AIMS[command]], [one["ratio"]])
        for command, one in whole["commands"].items()
        if command in WALL_AIMS
    ]
    part = steps["sizes"][-1]["ms"]["products"] / steps["sizes"][-1]["ms"]["peft"]
    below = f"\nThe matrix products alone take {part:.2f} of PEFT's time at the largest size.\n"
    return table(["time or number", "aim", "found", "met"], rows) + below


def aim(what: str, aimed: Sequence[float], found: Sequence[float], at_least: bool = False) -> list[str]:
    """A row: one number for each size, or a single one. Held to what is shown, two digits."""
    shown = [f"{one:.2f}" for one in found]
    met = [float(one) >= bound if at_least else float(one) <= bound for one, bound in zip(shown, aimed, strict=True)]
    bounds = ", ".join(f"{bound:.2f}" for bound in aimed)
    verdict = ("no", "yes")[met[0]] if len(met) == 1 else f"at {sum(met)} of {len(met)} sizes"
    return [what, f"at {'least' if at_least else 'most'} {bounds}", ", ".join(shown), verdict]


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
    step: ("step",),
    names: ("step",),
    sweep: ("sweep",),
    wall: ("wall",),
    aims: ("step", "sweep", "wall"),
    profile: ("profile",),
    growth: ("growth",),
    product: ("product",),
    memory: ("growth",),
}


def filled(text: str) -> str:
    """The text with every table made anew from its measurements."""
    for make, sources in SOURCES.items():
        measured = [
            json.loads((FOLDER / "results" / f"{source}.json").read_text(encoding="utf-8")) for source in sources
        ]
        opening, closing = f"<!-- {make.__name__} -->\n", f"<!-- /{make.__name__} -->"
        before, _, rest = text.partition(opening)
        _, _, after = rest.partition(closing)
        text = before + opening + make(*measured) + closing + after
    return text


if __name__ == "__main__":
    page = FOLDER / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
