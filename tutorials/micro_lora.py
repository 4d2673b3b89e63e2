"""LoRA in one file, with nothing but NumPy: a model of surnames learns first names, and its own weights stay frozen.

`python tutorials/micro_lora.py` takes seconds; the chapters beside it say why each part is so. Gradients are by hand: a
function returns its answer and a function `back`, which turns g, the gradient of the loss with respect to that answer,
into the one with respect to what it read. Shapes: B names, T tokens, N = B T, d features, H heads, V symbols, rank r.
"""

# fmt: off
import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")                           # on matrices so small, more threads are slower
import numpy as np

DATA = Path(__file__).resolve().parents[1] / "minilora" / "data"        # what the package ships: names and a base
SYMBOLS = ".abcdefghijklmnopqrstuvwxyz"                                 # a letter's token is its place here
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "layers_to_transform": [0, 1],
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}  # the settings, as PEFT calls them

# The data: names, a token a letter. The model reads the letters so far and says how likely each next one is.
def encode(names, n_tokens):
    inputs = np.zeros((len(names), n_tokens), int)                      # (B, T): 0 begins a name, and fills up
    targets = np.full((len(names), n_tokens), -1)                       # (B, T): -1 where there is nothing to say
    for row, name in enumerate(names):
        letters = [SYMBOLS.index(letter) for letter in name]            # "ann": 1, 14, 14
        inputs[row, 1 : len(name) + 1] = letters                        # for "ann" it reads  0  1 14 14
        targets[row, : len(name) + 1] = [*letters, 0]                   # what comes next:    1 14 14  0
    return inputs, targets

# The base: pretrained on surnames, and stored in safetensors, a format plain enough to be read by hand.
def load_base(folder):
    raw = (folder / "model.safetensors").read_bytes()                   # 8 bytes, a header, then all the numbers
    size = int.from_bytes(raw[:8], "little")                            # the 8 bytes: how long the header is
    header, numbers, params = json.loads(raw[8 : 8 + size]), raw[8 + size :], {}  # JSON: what lies where
    for path in sorted(header.keys() - {"__metadata__"}):               # path: "layers.0.q_proj.weight"
        begin, end = header[path]["data_offsets"]                       # in bytes, from the end of the header
        params[path] = np.frombuffer(numbers[begin:end], "<f4").reshape(header[path]["shape"])  # read-only: frozen
    return json.loads((folder / "config.json").read_text()), params     # n_layers, n_heads, context_length, ...

# LoRA (chapter 4): chosen modules get two thin factors. A is random and B zero, so B A = 0: the start is the base.
def init_lora(params, config, rng):
    lora = {}
    for path in [f"layers.{i}.{name}" for i in config["layers_to_transform"] for name in config["target_modules"]]:
        W = params[f"{path}.weight"]                                    # (out, in); KeyError where there is none
        A = rng.uniform(-1, 1, (config["r"], W.shape[1])) * W.shape[1] ** -0.5  # the wider the input, the smaller
        lora[f"{path}.lora_A"] = A.astype(W.dtype)                      # (r, in): reads r numbers off the input
        lora[f"{path}.lora_B"] = np.zeros((len(W), config["r"]), W.dtype)  # (out, r): writes what follows from them
    return lora

# Dropout (chapter 5): in training, A does not see all of its input. What it does see is enlarged, so the mean stays.
def dropout_mask(x, p, rng):
    keep = rng.random(x.shape, dtype=np.float32) >= p                   # False with probability p, each by itself
    return (keep / (1 - p)).astype(x.dtype)                             # 0, or 1 / (1 - p)

# A linear module (chapters 3 and 4): y = x W^T + b, and with factors y = x W^T + b + (alpha / r) (dropout(x) A^T) B^T.
def linear(params, lora, config, rng, grads, path, x):
    W, b = params[f"{path}.weight"], params[f"{path}.bias"]             # (out, in) and (out,), frozen
    y = x @ W.T + b                                                     # (N, in) -> (N, out)
    if f"{path}.lora_A" not in lora:                                    # a module that was not chosen
        return y, lambda g: g @ W                                       # (N, out) -> (N, in); no dW, as W is frozen
    A, B = lora[f"{path}.lora_A"], lora[f"{path}.lora_B"]               # (r, in) and (out, r), which train
    scale, p = config["lora_alpha"] / len(A), config["lora_dropout"]    # alpha / r, as A has r rows
    mask = dropout_mask(x, p, rng) if rng is not None and p > 0 else 1  # no generator: evaluation, no dropout
    dropped = x * mask                                                  # A alone reads this; W reads all of x
    u = dropped @ A.T                                                   # (N, in) -> (N, r)
    def back(g):                                                        # g: (N, out)
        h = scale * (g @ B)                                             # (N, out) -> (N, r): the gradient of u
        grads[f"{path}.lora_A"] = h.T @ dropped                         # (r, in): zero as long as B is,
        grads[f"{path}.lora_B"] = scale * (g.T @ u)                     # (out, r): so B moves first
        return g @ W + (h @ A) * mask                                   # x went two ways, so two ways lead back
    return y + scale * (u @ B.T), back                                  # (N, r) -> (N, out)

# A layer norm brings the features of each token to mean 0 and variance 1, then scales and shifts them.
def layer_norm(params, path, x):
    weight, bias = params[f"{path}.weight"], params[f"{path}.bias"]     # (d,) each, frozen
    centred = x - x.mean(-1, keepdims=True)                             # (N, d)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)  # (N, 1): 1 / deviation, never 1 / 0
    n = centred * inverse                                               # (N, d): mean 0, variance 1
    def back(g):                                                        # g: (N, d)
        h = g * weight                                                  # shifting or stretching x changes nothing,
        return inverse * (h - h.mean(-1, keepdims=True) - n * (h * n).mean(-1, keepdims=True))  # so both are taken out
    return n * weight + bias, back                                      # (N, d)

# Scores become logarithms of probabilities; the largest is taken off first, so that no exp overflows.
def log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)                     # only differences between scores count
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))       # now exp of each row sums to 1

# Attention (chapter 2): a token compares its query with its own key and earlier ones, and takes a mix of their values.
def attention(q, k, v, n_tokens, n_heads):
    def split(x): return x.reshape(-1, n_tokens, n_heads, x.shape[-1] // n_heads).swapaxes(1, 2)  # -> (B, H, T, d/H)
    def join(x): return x.swapaxes(1, 2).reshape(q.shape)               # (B, H, T, d/H) -> (N, d): heads in a row
    Q, K, V, scale = split(q), split(k), split(v), (q.shape[-1] // n_heads) ** -0.5  # 1 / sqrt(d/H)
    past = np.tri(n_tokens, dtype=bool)                                 # (T, T): row t is True up to column t
    P = np.exp(log_softmax(np.where(past, scale * (Q @ K.mT), -np.inf)))  # (B, H, T, T): row t is where t looks
    def back(g):                                                        # g: (N, d)
        dP = split(g) @ V.mT                                            # (B, H, T, T)
        dS = scale * P * (dP - (dP * P).sum(-1, keepdims=True))         # through softmax: a row of P sums to 1
        return join(dS @ K), join(dS.mT @ Q), join(P.mT @ split(g))     # dq, dk, dv: (N, d) each
    return join(P @ V), back                                            # (N, d): of each head, its mix of values

# A block (chapter 2) adds to each token what attention gathers from others, then what the MLP makes of the token alone.
def block(project, norm, x, i, n_tokens, n_heads):
    h, back_norm = norm(f"layers.{i}.input_layernorm", x)               # before attention, hence "pre-LN"
    (q, back_q), (k, back_k), (v, back_v) = (project(f"layers.{i}.{one}", h) for one in ("q_proj", "k_proj", "v_proj"))
    mixed, back_attention = attention(q, k, v, n_tokens, n_heads)       # (N, d): the one place where tokens meet
    gathered, back_o = project(f"layers.{i}.o_proj", mixed)             # (N, d): what goes onto the stream
    x = x + gathered                                                    # the residual stream is only added to
    h, back_mlp_norm = norm(f"layers.{i}.post_attention_layernorm", x)  # before the MLP, in spite of its name
    hidden, back_up = project(f"layers.{i}.up_proj", h)                 # (N, d) -> (N, 4 d)
    made, back_down = project(f"layers.{i}.down_proj", np.maximum(hidden, 0))  # ReLU, then (N, 4 d) -> (N, d)
    def back(g):                                                        # the same from the last step to the first
        g = g + back_mlp_norm(back_up(back_down(g) * (hidden > 0)))     # g + ...: x went past the MLP too
        dq, dk, dv = back_attention(back_o(g))                          # the gradient parts in three
        return g + back_norm(back_q(dq) + back_k(dk) + back_v(dv))      # and adds up, as all three read h
    return x + made, back                                               # (N, d), like x

# The model: from tokens (B, T) to logits (B, T, V), and back to the gradient of every factor.
def forward(params, lora, tokens, config, rng=None):
    (_, n_tokens), grads, backs = tokens.shape, {}, {}                  # grads: each module leaves its own there
    project, norm = partial(linear, params, lora, config, rng, grads), partial(layer_norm, params)  # bound once
    table = params["embed_tokens.weight"]                               # (V, d): a row for each symbol
    x = (table[tokens] + params["embed_positions.weight"][:n_tokens]).reshape(-1, table.shape[1])  # (B, T) -> (N, d)
    for i in range(config["n_layers"]):
        x, backs[i] = block(project, norm, x, i, n_tokens, config["n_heads"])  # (N, d) stays (N, d)
    x, back_norm = norm("norm", x)                                      # the last layer norm
    def back(g):                                                        # g: (B, T, V)
        g = back_norm(g.reshape(len(x), -1) @ table)                    # (B, T, V) -> (N, V) -> (N, d)
        for i in reversed(backs):
            g = backs[i](g)                                             # the last block first
        return grads                                                    # {"layers.0.q_proj.lora_A": (r, in), ...}
    return (x @ table.T).reshape(*tokens.shape, -1), back               # how well x matches the row of each symbol

# The loss: mean surprise at the letters that came, -log p, in nats. Its gradient: what was said minus what came.
def cross_entropy(logits, targets):
    log_p = log_softmax(logits)                                         # (B, T, V)
    came = targets[..., None] == np.arange(logits.shape[-1])            # (B, T, V): True at the letter that came
    n, counted = int(came.sum()), came.any(-1, keepdims=True)           # padding has none, and does not count
    return -log_p[came].sum() / n, (np.exp(log_p) - came) * counted / n  # (), (B, T, V)

# AdamW (chapter 5): a gradient is divided by its own running size, so a number moves by about the learning rate a step.
def adamw(lora, grads, means, step, learning_rate, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-8):
    moved, kept = {}, {}                                                # new ones: nothing is written to
    for name, g in grads.items():                                       # "layers.0.q_proj.lora_A" and so on
        m, v = means.get(name, (0.0, 0.0))                              # zero before the first step
        m = b1 * m + (1 - b1) * g                                       # running mean of the gradient
        v = b2 * v + (1 - b2) * g * g                                   # and of its square
        direction = m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps)  # 1 - b^step: both means began at 0
        moved[name] = (1 - learning_rate * weight_decay) * lora[name] - learning_rate * direction  # decay: not divided
        kept[name] = m, v                                               # for the next step
    return moved, kept

# Merging (chapter 4): W becomes W + (alpha / r) B A. What is left is an ordinary model, as large and fast as the base.
def merge(params, lora, config):
    merged = dict(params)                                               # a new dict: the base stays as it was
    for path in sorted({name.rpartition(".")[0] for name in lora}):     # each adapted module, once
        A, B = lora[f"{path}.lora_A"], lora[f"{path}.lora_B"]           # (r, in) and (out, r)
        merged[f"{path}.weight"] = params[f"{path}.weight"] + config["lora_alpha"] / len(A) * (B @ A)  # (out, in)
    return merged

# Writing names: draw a letter from the probabilities, append it, go on.
def sample(params, lora, config, n, rng):
    tokens = np.zeros((n, 1), int)                                      # (n, 1): every name begins with 0
    for _ in range(config["context_length"]):                           # a letter a round
        logits, _ = forward(params, lora, tokens, config)               # (n, t, V)
        sums = np.exp(log_softmax(logits[:, -1])).cumsum(-1)            # (n, V): of the last token, from 0 up to 1
        letters = (sums < rng.random((n, 1)) * sums[:, -1:]).sum(-1)    # each as often as it is probable
        tokens = np.column_stack([tokens, letters])                     # (n, t) -> (n, t + 1)
    return ["".join(SYMBOLS[token] for token in row).split(".")[0] for row in tokens[:, 1:]]  # up to the next 0

# All of it: a base, 2,775 first names to learn from and 1,500 to test on, and a thousand steps.
def main(steps=1000, batch_size=32, learning_rate=1e-2):
    rng = np.random.default_rng(0)                                      # whatever is random comes from here
    config, base = load_base(DATA / "bases" / "surnames")               # made by minilora.data.pretrain
    config |= LORA                                                      # sizes of the model, settings of LoRA
    names = rng.permutation((DATA / "female_first_names.txt").read_text().split())  # shuffled
    validation, train = (encode(some, config["context_length"]) for some in (names[:1500], names[1500:]))
    lora, means = init_lora(base, config, rng), {}                      # before the first step
    sizes = [sum(array.size for array in arrays.values()) for arrays in (lora, base)]  # of all arrays together
    print("LoRA trains {:,} numbers beside {:,} frozen ones. Losses are in nats per letter.".format(*sizes))
    def report(what, params, lora):                                     # on all names, without dropout
        losses = [cross_entropy(forward(params, lora, x, config)[0], y)[0] for x, y in (train, validation)]
        print(f"{what:10} train {losses[0]:.3f}  validation {losses[1]:.3f}")
    report("base", base, {})                                            # the model of surnames
    report("step 0", base, lora)                                        # with factors: the same, as B is zero
    for step in range(1, steps + 1):
        rows = rng.integers(len(train[0]), size=batch_size)             # a batch of names, drawn at random
        logits, back = forward(base, lora, train[0][rows], config, rng)  # with rng, so with dropout
        _, g = cross_entropy(logits, train[1][rows])                    # g: (B, T, V)
        lora, means = adamw(lora, back(g), means, step, learning_rate * (steps + 1 - step) / steps)  # a falling rate
        if step % 200 == 0:
            report(f"step {step}", base, lora)
    report("merged", merge(base, lora, config), {})                     # no factors: the change is in the weights
    print("before    ", *sample(base, {}, config, 8, rng))              # eight names by the base
    print("after     ", *sample(base, lora, config, 8, rng))            # and eight by the adapted model

if __name__ == "__main__":
    main()
