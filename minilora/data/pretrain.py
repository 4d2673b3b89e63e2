"""Pretrain the base on surnames: `python -m minilora.data.pretrain --out FOLDER`.

The bases that ship with minilora were made by this command: "surnames" with the defaults, "surnames_4_layers" with
`--layers 4`. The same code on the same kind of machine makes the same bits again; a later version that sums in another
order makes another base, as good as the first (2.135 nats per letter where "surnames" has 2.133, when last tried).
"""

import time
from pathlib import Path

import numpy as np

from minilora.checkpoint import save_model
from minilora.command_line import DONE, FAILED, INTERRUPTED, Parser, check_folder, command, complain, integer, leave
from minilora.data.names import surname_split
from minilora.evaluation import evaluate
from minilora.model import Model, ModelConfig, init_params
from minilora.train import DivergedError, TrainConfig, fit
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


@command
def main(arguments: list[str]) -> int:
    """The command line."""
    parser = Parser(
        "python -m minilora.data.pretrain", __doc__.split("\n")[0], failed="it diverged, or was not written"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="for config.json and model.safetensors"
    )
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="default: 0")
    parser.add_argument("--steps", type=integer(1), default=STEPS, metavar="N", help=f"default: {STEPS}")
    parser.add_argument("--layers", type=integer(1, 100), default=ModelConfig.n_layers, metavar="N", help="default: 2")
    options = parser.parse_args(arguments)
    check_folder("--out", options.out)
    started = time.perf_counter()
    try:
        model, loss = pretrain(options.seed, options.steps, ModelConfig(n_layers=options.layers))
    except KeyboardInterrupt:
        complain("interrupted: nothing was written")
        return INTERRUPTED
    except DivergedError as error:
        complain(f"error: {error}")
        return FAILED
    made_by = f"python -m minilora.data.pretrain --seed {options.seed} --steps {options.steps}"
    if options.layers != ModelConfig.n_layers:
        made_by += f" --layers {options.layers}"
    save_model(model, options.out, {"validation_loss": loss, "made_by": made_by})
    print(f"validation loss {loss:.4f} nats per letter, fingerprint {fingerprint(model.params)[:12]}, "
          f"{time.perf_counter() - started:.0f} s, written to {options.out}")  # fmt: skip
    return DONE


if __name__ == "__main__":
    leave(main())
