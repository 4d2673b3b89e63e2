"""The same computation a second time, with Python's own numbers in plain loops: no NumPy, no autograd, no minilora.

Numbers may be complex: the imaginary part of f(x + ih) / h is the derivative at x to the last digit (Squire and Trapp
1998), so gradients need no backward pass.
"""

import cmath
import json
import math
import struct

H = 1e-30


def read_safetensors(path):
    """{name: (shape, flat list)} by the format's own words: a length, a JSON header, raw little-endian numbers."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    arrays = {}
    for name, one in header.items():
        if name != "__metadata__":
            begin, end = one["data_offsets"]
            raw = content[8 + size + begin : 8 + size + end]
            arrays[name] = (
                one["shape"],
                list(struct.unpack(f"<{len(raw) // 8}{ {'F64': 'd', 'I64': 'q'}[one['dtype']] }", raw)),
            )
    return arrays


def rows(array):
    """A matrix as a list of rows."""
    (n, m), flat = array
    return [flat[i * m : (i + 1) * m] for i in range(n)]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def linear(x, weight, bias):
    return [dot(x, row) + b for row, b in zip(weight, bias, strict=True)]


def layer_norm(x, gain, bias):
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return [(a - mean) / cmath.sqrt(variance + 1e-5) * g + b for a, g, b in zip(x, gain, bias, strict=True)]


class Model:
    """A vector's model and adapter; `numbers` maps each name to its flat list of numbers."""

    def __init__(self, described, arrays):
        self.described, self.shapes = described, {name: shape for name, (shape, _) in arrays.items()}
        self.numbers = {name: list(flat) for name, (_, flat) in arrays.items()}

    def matrix(self, name):
        return rows((self.shapes[name], self.numbers[name]))

    def project(self, path, x):
        """W x + b + (alpha / r) B A x."""
        trained_bias = f"factor.{path}.bias"
        bias = self.numbers[trained_bias if trained_bias in self.numbers else f"base.{path}.bias"]
        y = linear(x, self.matrix(f"base.{path}.weight"), bias)
        if f"factor.{path}.lora_A" not in self.numbers:
            return y
        down = [dot(row, x) for row in self.matrix(f"factor.{path}.lora_A")]
        up = [dot(row, down) for row in self.matrix(f"factor.{path}.lora_B")]
        return [a + self.described["scaling"][path] * b for a, b in zip(y, up, strict=True)]

    def norm(self, path, x):
        trained_bias = f"factor.{path}.bias"
        bias = self.numbers[trained_bias if trained_bias in self.numbers else f"base.{path}.bias"]
        return layer_norm(x, self.numbers[f"base.{path}.weight"], bias)

    def attention(self, path, xs):
        heads, d = self.described["model"]["n_heads"], self.described["model"]["d_model"]
        q, k, v = ([self.project(f"{path}.{name}", x) for x in xs] for name in ("q_proj", "k_proj", "v_proj"))
        size, attended = d // heads, []
        for t in range(len(xs)):
            joined = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                weights = [cmath.exp(dot(q[t][part], k[s][part]) / math.sqrt(size)) for s in range(t + 1)]
                total = sum(weights)
                joined += [sum(w * v[s][part][i] for s, w in enumerate(weights)) / total for i in range(size)]
            attended.append(self.project(f"{path}.o_proj", joined))
        return attended

    def logits(self, tokens):
        """One sequence of tokens -> a list of logits a token."""
        table, places = self.matrix("base.embed_tokens.weight"), self.matrix("base.embed_positions.weight")
        xs = [[a + b for a, b in zip(table[token], places[t], strict=True)] for t, token in enumerate(tokens)]
        for i in range(self.described["model"]["n_layers"]):
            path = f"layers.{i}"
            more = self.attention(path, [self.norm(f"{path}.input_layernorm", x) for x in xs])
            xs = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(xs, more, strict=True)]
            for t, x in enumerate(xs):
                hidden = self.project(f"{path}.up_proj", self.norm(f"{path}.post_attention_layernorm", x))
                y = self.project(f"{path}.down_proj", [a if a.real > 0 else 0.0 for a in hidden])
                xs[t] = [a + b for a, b in zip(x, y, strict=True)]
        return [[dot(self.norm("norm", x), row) for row in table] for x in xs]

    def loss(self):
        """Mean cross-entropy over the targets that are not -1."""
        tokens, targets = (
            rows((self.shapes["tokens"], self.numbers["tokens"])),
            rows((self.shapes["targets"], self.numbers["targets"])),
        )
        terms = []
        for sequence, wanted in zip(tokens, targets, strict=True):
            for logits, target in zip(self.logits(sequence), wanted, strict=True):
                if target >= 0:
                    terms.append(cmath.log(sum(cmath.exp(a) for a in logits)) - logits[target])
        return sum(terms) / len(terms)

    def derivative(self, name, i):
        """Of the loss by the i-th number of that array."""
        before = self.numbers[name][i]
        self.numbers[name][i] = before + H * 1j
        slope = self.loss().imag / H
        self.numbers[name][i] = before
        return slope

    def merged(self, path):
        """W + (alpha / r) B A, row by row."""
        A, B = self.matrix(f"factor.{path}.lora_A"), self.matrix(f"factor.{path}.lora_B")
        columns = list(zip(*A, strict=True))
        return [
            [w + self.described["scaling"][path] * dot(b, column) for w, column in zip(row, columns, strict=True)]
            for row, b in zip(self.matrix(f"base.{path}.weight"), B, strict=True)
        ]


def adamw(numbers, gradients_of, rates, steps, weight_decay, eps, betas):
    """{name: numbers} after steps of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    first = {name: [0.0] * len(one) for name, one in numbers.items()}
    second = {name: [0.0] * len(one) for name, one in numbers.items()}
    for step in range(1, steps + 1):
        gradients = gradients_of(numbers)
        for name, one in numbers.items():
            for i, g in enumerate(gradients[name]):
                first[name][i] = betas[0] * first[name][i] + (1 - betas[0]) * g
                second[name][i] = betas[1] * second[name][i] + (1 - betas[1]) * g * g
                m, v = first[name][i] / (1 - betas[0] ** step), second[name][i] / (1 - betas[1] ** step)
                one[i] = one[i] - rates(name) * (m / (math.sqrt(v) + eps) + weight_decay * one[i])
    return numbers
