"""LoRA's second product, (x A^T) B^T, by rank: where the inner axis is 1, NumPy's matmul does without BLAS.

    python tests/bench/product.py [--rounds N] [--json FILE]

At the sizes of `growth.py`'s middle: 384 tokens, d_model 64, float32. The fastest round counts: others are disturbed.
"""

import argparse
import json
import timeit
from pathlib import Path

import numpy as np

from minilora import ops
from minilora.conditions import working_conditions

N_TOKENS, D_MODEL = 384, 64
RANKS = (1, 2, 4, 8)
WAYS = {"`@`": np.matmul, "minilora": ops.product}  # ops.product multiplies by `*` at r = 1


def microseconds(multiply, r: int, rounds: int) -> float:
    """Of one product, (384, r) by (r, 64)."""
    rng = np.random.default_rng(0)
    u, lora_B = (rng.normal(size=(n, r)).astype("float32") for n in (N_TOKENS, D_MODEL))
    return 1e6 * min(timeit.repeat(lambda: multiply(u, lora_B.mT), number=200, repeat=rounds)) / 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with working_conditions():
        report = {way: {r: microseconds(WAYS[way], r, options.rounds) for r in RANKS} for way in WAYS}
    for way, of_rank in report.items():
        print(way, ", ".join(f"r={r}: {us:.1f} us" for r, us in of_rank.items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
