"""A step of the model in PyTorch, with the adapter by PEFT."""

import numpy as np
import peft
import torch
from ours import DECAY, LEARNING_RATE, Given, Setup, Sweep
from torch.nn import functional as F

import minilora as ml
from minilora.model import LINEAR
from minilora.stack import FineTuning
from minilora.trees import leaves

torch.set_num_threads(1)


class Block(torch.nn.Module):
    """A block of the model, with the modules that PEFT finds by name."""

    def __init__(self, d: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.input_layernorm, self.post_attention_layernorm = torch.nn.LayerNorm(d), torch.nn.LayerNorm(d)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(d, d) for _ in range(4))
        self.up_proj, self.down_proj = torch.nn.Linear(d, 4 * d), torch.nn.Linear(4 * d, d)

    def forward(self, x):
        h = self.input_layernorm(x)
        q, k, v = (
            project(h).view(*h.shape[:-1], self.n_heads, -1).transpose(1, 2)  # (B, T, d) -> (B, H, T, d/H)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down_proj(F.relu(self.up_proj(self.post_attention_layernorm(x))))


class Transformer(torch.nn.Module):
    """The model in PyTorch."""

    def __init__(self, config: ml.ModelConfig):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = torch.nn.Embedding(config.context_length, config.d_model)
        self.layers = torch.nn.ModuleList(Block(config.d_model, config.n_heads) for _ in range(config.n_layers))
        self.norm = torch.nn.LayerNorm(config.d_model)

    def forward(self, tokens):
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embed_tokens.weight.T


class Peft:
    """The model in PyTorch with PEFT's LoRA and PyTorch's fused AdamW, its fastest on a CPU."""

    def __init__(self, start: Setup, learning_rate: float = LEARNING_RATE, decay: float = DECAY):
        config, lora = start.model.config, start.adapter.config
        twin = Transformer(config).to(getattr(torch, config.dtype))
        weights = {path: torch.tensor(array) for path, array in leaves(start.model.params).items()}
        twin.load_state_dict(weights)
        settings = {"r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
        targets = list(LINEAR if lora.target_modules == "all-linear" else lora.target_modules)
        self.model = peft.get_peft_model(
            twin, peft.LoraConfig(**settings, target_modules=targets), autocast_adapter_dtype=False
        )
        self.parameters = {
            name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        with torch.no_grad():
            for name, array in start.adapter.arrays().items():
                self.parameters[name].copy_(torch.tensor(array))
        self.batches = [tensors(batch) for batch in start.batches]
        self.optimizer = torch.optim.AdamW(self.parameters.values(), learning_rate, weight_decay=decay, fused=True)

    def loss(self, tokens, targets):
        logits = self.model(tokens)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-1)

    def loss_and_gradients(self, i: int):
        self.optimizer.zero_grad()
        loss = self.loss(*self.batches[i])
        loss.backward()
        return float(loss.detach()), {name: p.grad.numpy().copy() for name, p in self.parameters.items()}

    def step(self, i: int = 0) -> None:
        self.step_on(*self.batches[i])

    def step_on(self, tokens, targets) -> None:
        self.optimizer.zero_grad()
        self.loss(tokens, targets).backward()
        self.optimizer.step()

    @torch.no_grad()
    def mean_loss(self, parts) -> float:
        """Over all that there is to predict in tokens and targets."""
        counts = [int((targets >= 0).sum()) for _, targets in parts]
        losses = [float(self.loss(*part)) for part in parts]
        return sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)


def tensors(batch: ml.Dataset) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.tensor, batch))


class PeftSweep(Sweep):
    """Run by run as `ml.fit` does it."""

    def fine_tune(self, runs):
        return np.array([self.measured(run) for run in runs])

    def measured(self, run: FineTuning) -> list[list[float]]:
        """Training and validation loss at each evaluation."""
        given, config = Given.of(self.base, run), run.config
        one = Peft(Setup(self.base, given.adapter, ()), config.learning_rate, config.weight_decay)
        sets = [[tensors(part) for part in parts] for parts in given.sets]
        measured = []
        for step, batch in enumerate(given.batches):
            if step % config.evaluate_every == 0:
                measured.append([one.mean_loss(parts) for parts in sets])
            one.step_on(*tensors(batch))
        return [*measured, [one.mean_loss(parts) for parts in sets]]
