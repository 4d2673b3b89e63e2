"""The model of `minilora.model` in PyTorch, under the same module paths, so that PEFT finds what minilora finds.

Needs PyTorch, which minilora does without; nothing imports this module but what compares the two.
"""

import math

import numpy as np
import torch
from torch import nn

from minilora.model import LAYER_NORM_EPS, ModelConfig, Params
from minilora.trees import leaves


class Twin(nn.Module):
    """The transformer with a copy of these parameters, in their dtype.

    `named_parameters()` has minilora's names: "layers.0.q_proj.weight" is (out, in).
    """

    def __init__(self, config: ModelConfig, params: Params):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.context_length, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, LAYER_NORM_EPS)
        tensors = {path: torch.tensor(array) for path, array in leaves(params).items()}
        self.to(tensors["norm.weight"].dtype)  # before the copy, which would round float64 otherwise
        self.load_state_dict(tensors)

    def forward(self, tokens):
        """Logits (B, T, V) for tokens (B, T)."""
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]  # (B, T, d)
        for block in self.layers:
            x = block(x)
        return self.norm(x) @ self.embed_tokens.weight.T  # the tied head


class Block(nn.Module):
    """What each token attends to, then the MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.input_layernorm = nn.LayerNorm(d, LAYER_NORM_EPS)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d) for _ in range(4))
        self.post_attention_layernorm = nn.LayerNorm(d, LAYER_NORM_EPS)
        self.up_proj, self.down_proj = nn.Linear(d, config.d_ff), nn.Linear(config.d_ff, d)

    def forward(self, x):
        """(B, T, d) -> (B, T, d)."""
        h = self.input_layernorm(x)
        q, k, v = (  # (B, T, d) -> (B, H, T, d/H)
            project(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, T): query, key
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        attended = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        x = x + self.o_proj(attended.transpose(1, 2).flatten(-2))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(self.up_proj(h).relu())


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """A copy of every parameter, by its dotted path."""
    return {path: parameter.detach().numpy().copy() for path, parameter in module.named_parameters()}
