"""Pretrain the base on surnames: `python -m minilora.data.pretrain --out FOLDER`.

The bases that ship with minilora were made by this command: "surnames" with the defaults, "surnames_4_layers" with
`--layers 4`. The same code on the same kind of machine makes the same bits again; a later version that sums in another
order makes another base, as good as the first (2.135 nats per letter where "surnames" has 2.133, when last tried).
"""

import argparse
import sys
import time

import numpy as np

from minilora.checkpoint import save_model
from minilora.checks import check_integer
from minilora.data.names import surname_split
from minilora.files import check_writable
from minilora.model import Model, ModelConfig, init_params
from minilora.train import DivergedError, TrainConfig, evaluate, fit
from minilora.trees import fingerprint

STEPS = 12_000


def pretrain(seed: int, steps: int, config: ModelConfig) -> tuple[Model, float]:
    """A model trained on surnames, and its validation loss in nats per letter."""
    train, validation = surname_split()
    start = Model(config, init_params(config, np.random.default_rng(seed)))
    settings = TrainConfig(steps=steps, batch_size=128, learning_rate=3e-3, schedule="cosine",
                           warmup_steps=min(100, steps // 10), weight_decay=0.01, evaluate_every=500,
                           evaluation_size=500)  # fmt: skip
    history = fit(start, None, train, validation, settings, seed)
    assert isinstance(history.final, Model)
    return history.final, evaluate(history.final, validation)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m minilora.data.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write config.json and model.safetensors to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layers", type=int, default=ModelConfig.n_layers)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        check_integer("seed", options.seed, at_least=0)
        check_integer("steps", options.steps, at_least=1)
        check_integer("layers", options.layers, at_least=1)
        check_writable(options.out)
        model, loss = pretrain(options.seed, options.steps, ModelConfig(n_layers=options.layers))
        made_by = f"python -m minilora.data.pretrain --seed {options.seed} --steps {options.steps}"
        if options.layers != ModelConfig.n_layers:
            made_by += f" --layers {options.layers}"
        save_model(model, options.out, {"validation_loss": loss, "made_by": made_by})
    except (ValueError, OSError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"validation loss {loss:.4f} nats per letter, fingerprint {fingerprint(model.params)[:12]}, "
          f"{time.perf_counter() - started:.0f} s, written to {options.out}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
