"""A step of the model as one writes it down, over `autograd.numpy` here and over `jax.numpy` in `jax_jit.py`."""

import autograd
import autograd.numpy as anp
import numpy as np
from ours import Minilora, Setup

from minilora.model import LAYER_NORM_EPS
from minilora.trees import leaves


class Softmax:
    """What `jax.nn` calls so, over autograd's NumPy."""

    @staticmethod
    def log_softmax(x):
        shifted = x - anp.max(x, axis=-1, keepdims=True)
        return shifted - anp.log(anp.sum(anp.exp(shifted), axis=-1, keepdims=True))

    @staticmethod
    def softmax(x):
        return anp.exp(Softmax.log_softmax(x))


def plain_loss(xp, nn, trained, frozen, tokens, targets, n_heads, scaling):
    """The model as one writes it down over `xp`, a NumPy, and the two of `Softmax` by `nn`.

    `trained` and `frozen` are {dotted path: array}; targets below 0 do not count.
    """

    def linear(path, x):
        y = x @ frozen[f"{path}.weight"].T + frozen[f"{path}.bias"]
        if f"{path}.lora_A" in trained:
            y = y + scaling * ((x @ trained[f"{path}.lora_A"].T) @ trained[f"{path}.lora_B"].T)
        return y

    def norm(path, x):
        centered = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(centered**2, axis=-1, keepdims=True)
        return frozen[f"{path}.weight"] * centered / xp.sqrt(variance + LAYER_NORM_EPS) + frozen[f"{path}.bias"]

    def split(x):
        return xp.swapaxes(xp.reshape(x, (*tokens.shape, n_heads, -1)), 1, 2)  # (B T, d) -> (B, H, T, d/H)

    def attention(layer, x):
        q, k, v = (split(linear(f"{layer}.{name}_proj", x)) for name in "qkv")
        scores = xp.matmul(q, xp.swapaxes(k, -1, -2)) * q.shape[-1] ** -0.5
        joined = xp.swapaxes(xp.matmul(nn.softmax(xp.where(visible, scores, -1e30)), v), 1, 2)
        return linear(f"{layer}.o_proj", xp.reshape(joined, x.shape))

    visible = np.tri(tokens.shape[1], dtype=bool)
    table = frozen["embed_tokens.weight"]
    embedded = table[tokens] + frozen["embed_positions.weight"][: tokens.shape[1]]
    x = xp.reshape(embedded, (-1, table.shape[1]))  # (B, T, d) -> (B T, d): one product in place of B
    for i in range(sum(path.endswith("up_proj.weight") for path in frozen)):
        layer = f"layers.{i}"
        x = x + attention(layer, norm(f"{layer}.input_layernorm", x))
        hidden = linear(f"{layer}.up_proj", norm(f"{layer}.post_attention_layernorm", x))
        x = x + linear(f"{layer}.down_proj", xp.maximum(hidden, 0))
    log_p = nn.log_softmax(norm("norm", x) @ table.T)
    one_hot = xp.reshape(targets, (-1, 1)) == np.arange(len(table))
    return -xp.sum(log_p * one_hot) / xp.sum(targets >= 0)


class PlainAutograd:
    """The plain model, differentiated by autograd operation by operation; AdamW is ours."""

    def __init__(self, start: Setup):
        self.ours = Minilora(start)
        scaling = next(iter(start.adapter.scaling.values()))
        frozen, n_heads = leaves(start.model.params), start.model.config.n_heads

        def loss(vector, tokens, targets):
            trained = self.ours.arrays(vector)
            return plain_loss(anp, Softmax, trained, frozen, tokens, targets, n_heads, scaling)

        self.value_and_grad = autograd.value_and_grad(loss)
        self.batches = start.batches

    def loss_and_gradients(self, i: int):
        loss, gradient = self.value_and_grad(self.ours.vector, *self.batches[i])
        return loss, self.ours.arrays(gradient)

    def step(self, i: int = 0) -> None:
        _, gradient = self.value_and_grad(self.ours.vector, *self.batches[i])
        self.ours.update(gradient)
