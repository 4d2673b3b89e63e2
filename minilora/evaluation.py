"""Losses in evaluation mode, without dropout."""

from collections.abc import Sequence

from minilora import ops
from minilora.adapter import Adapter
from minilora.conditions import one_blas_thread
from minilora.dataset import Dataset, check_dataset, counted, evaluation_batches
from minilora.lora import check_base
from minilora.model import Model, check_model, forward


def loss_of(model: Model, batch: Dataset, adapter=None, rng=None):
    """Mean cross-entropy of a batch, in nats per token; (S,) for stacked runs."""
    logits = forward(model.params, batch.inputs, model.config, adapter=adapter, rng=rng)
    return ops.cross_entropy(logits, batch.targets)


def mean_loss(model: Model, batches: Sequence[Dataset], adapter: Adapter | None = None) -> float:
    """The mean over all that is to be predicted in several batches."""
    counts = [int(counted(batch.targets).sum()) for batch in batches]
    losses = [float(loss_of(model, batch, adapter)) for batch in batches]
    return sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)


def evaluate(model: Model, dataset: Dataset, adapter: Adapter | None = None) -> float:
    """Mean cross-entropy in nats per token, without dropout.

    ValueError if the data does not fit the model or the adapter is for another base, TypeError for arguments of another
    kind: a Model in the place of `adapter` is itself what is evaluated.

    >>> import minilora as ml
    >>> base = ml.load_base("surnames")
    >>> round(evaluate(base, ml.encode(["smith", "jones"])), 2) < 3
    True
    """
    check_model("model", model)
    check_dataset("dataset", dataset, model.config)
    if adapter is not None:
        check_base(model.params, adapter)
    with one_blas_thread():
        return mean_loss(model, evaluation_batches(dataset), adapter)


class Evaluator:
    """Training and validation loss on the way. Every run starts at the base, which is evaluated once for all."""

    def __init__(self, base: Model, train: Dataset, validation: Dataset, size: int | None):
        self.base = base
        self.sets = [evaluation_batches(one, size) for one in (train, validation)]
        for name, batches in zip(("train", "validation"), self.sets, strict=True):
            if not any(counted(batch.targets).any() for batch in batches):
                raise ValueError(f"evaluation_size: got {size}, which leaves nothing to predict in {name}")
        self.of_base: list[float] | None = None

    def losses(self, trained: Adapter | Model) -> list[float]:
        """[training loss, validation loss]."""
        if isinstance(trained, Model):
            return [mean_loss(trained, batches) for batches in self.sets]
        if trained.biases or any(pair["lora_A"].any() and pair["lora_B"].any() for pair in trained.factors.values()):
            return [mean_loss(self.base, batches, trained) for batches in self.sets]
        if self.of_base is None:  # with a factor of zeros nothing has changed, to the bit
            self.of_base = [mean_loss(self.base, batches) for batches in self.sets]
        return self.of_base
