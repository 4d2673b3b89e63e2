"""A step of the model in PyTorch, with the adapter by PEFT."""

import peft
import torch
from ours import DECAY, LEARNING_RATE, Setup
from torch.nn import functional as F

import minilora as ml
from minilora.model import LINEAR
from minilora.train import Streams, batches, evaluation_batches
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
        self.load(start.adapter)
        self.take(start.batch)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), learning_rate, weight_decay=decay, fused=True)

    def load(self, adapter: ml.Adapter) -> None:
        """Start from these factors."""
        with torch.no_grad():
            for name, array in adapter.arrays().items():
                self.parameters[name].copy_(torch.tensor(array))

    def take(self, batch: ml.Dataset) -> None:
        """Step on this batch from here on."""
        self.tokens, self.targets = (torch.tensor(part) for part in batch)

    def evaluate(self, parts: list[ml.Dataset]) -> float:
        """Mean loss over all that there is to predict."""
        counts = [(batch.targets >= 0).sum() for batch in parts]
        losses = []
        with torch.no_grad():
            for batch in parts:
                self.take(batch)
                losses.append(float(self._loss()))
        return sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)

    def _loss(self):
        logits = self.model(self.tokens)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), self.targets.reshape(-1), ignore_index=-1)

    def loss_and_gradients(self):
        self.optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        return float(loss.detach()), {name: p.grad.numpy().copy() for name, p in self.parameters.items()}

    def step(self):
        self.optimizer.zero_grad()
        self._loss().backward()
        self.optimizer.step()


def fine_tune(base: ml.Model, run: ml.FineTuning) -> float:
    """One run of the sweep as `ml.fit` does it, by PEFT: the validation loss at the end."""
    streams = Streams.of(run.seed)
    adapter = ml.init_adapter(base.params, run.lora, streams.init)
    peft_run = Peft(Setup(base, adapter, run.train), run.config.learning_rate, run.config.weight_decay)
    validation = evaluation_batches(run.validation, run.config.evaluation_size)
    for step, batch in enumerate(batches(run.train, run.config.batch_size, run.config.steps, streams.order)):
        if step % run.config.evaluate_every == 0:
            peft_run.evaluate(validation)
        peft_run.take(batch)
        peft_run.step()
    return peft_run.evaluate(validation)
