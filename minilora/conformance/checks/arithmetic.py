"""Checks of the arithmetic: the vectors, the scale, the start, the storage."""

import dataclasses

import numpy as np

from minilora.conformance import vectors
from minilora.conformance.checks.subject import (
    OURS,
    Check,
    Subject,
    change_of,
    collect,
    offered,
    refused,
    require,
    same_names,
)

CHECKS: list[Check] = []
check = collect(CHECKS)
ORIGINAL = "Hu et al. 2021, arXiv 2106.09685, eq. 3"
VECTORS = list(vectors.CONFIGS)


def _each(subject: Subject, test) -> str:
    """Do it for every vector that the implementation can build."""
    return offered(VECTORS, lambda name: test(vectors.load(name), subject.problem(name)))


@check(ORIGINAL)
def logits(subject: Subject) -> str:
    """Logits of every vector, and they differ from the base's"""

    def test(vector, problem):
        got = subject.forward(subject.build(problem), vector.tokens)
        subject.close(got, vector.expected["logits"], "logits")
        require(not np.allclose(got, vector.expected["base_logits"]), "the adapter changes nothing")

    return _each(subject, test)


@check(ORIGINAL)
def merged_weights(subject: Subject) -> str:
    """Weights after merging, for every vector: W + (alpha / r) B A, and trained biases"""

    def test(vector, problem):
        weights = subject.weights(subject.merged(problem), problem)
        subject.all_close(weights, dict(problem.base) | vector.expecting("merged"), "merged weights")

    return _each(subject, test)


@check(ORIGINAL)
def gradients(subject: Subject) -> str:
    """Gradients of every factor and trained bias, for every vector"""

    def test(vector, problem):
        made = subject.build(problem)
        got = subject.named("gradients", made, vector.tokens, vector.targets, like=problem.factors)
        subject.all_close(got, vector.expecting("gradient"), "gradient")

    return _each(subject, test)


@check("Loshchilov and Hutter 2019, arXiv 1711.05101")
def trained(subject: Subject) -> str:
    """Factors after three steps of AdamW with decay, for every vector"""

    def test(vector, problem):
        made = subject.build(problem)
        subject.it.train(made, vector.tokens, vector.targets, vector.optimizer)
        got, gradient = subject.named("factors", made, like=problem.factors), vector.expecting("gradient")
        for name, expected in vector.expecting("trained").items():
            if np.abs(gradient[name]).max() > 1e-9:  # else, as for the bias of k, it is rounding that Adam magnifies
                subject.close(got[name], expected, name, 100 * subject.tolerance)

    return _each(subject, test)


@check("peft#2155, mlx-examples#1289")
def selected_modules(subject: Subject) -> str:
    """Exactly the modules that every vector's config selects"""

    def test(vector, problem):
        got = subject.named("factors", subject.build(subject.fresh(problem, select=True)))
        same_names({name.rpartition(".")[0] for name in got if ".lora_" in name}, vector.modules, "adapted modules")

    return _each(subject, test)


@check(ORIGINAL + ", section 4.2")
def parameter_count(subject: Subject) -> str:
    """As many trainable parameters as r (in + out) a module and the biases make"""

    def test(vector, problem):
        got = sum(
            one.size for one in subject.named("factors", subject.build(subject.fresh(problem, select=True))).values()
        )
        require(
            got == vector.counts["trainable"], f"got {got} trainable parameters, takes {vector.counts['trainable']}"
        )

    return _each(subject, test)


@check("mlx-vlm#845, LLMs-from-scratch#821")
def scale_is_alpha_over_r(subject: Subject) -> None:
    """A and B all ones, r = 4, alpha = 8: each weight grows by (alpha / r) r = 8, not by alpha r = 32"""
    problem = subject.problem(r=4, lora_alpha=8, target_modules=["up_proj"])
    ones = {name: np.ones_like(one) for name, one in (problem.factors or {}).items()}
    problem = dataclasses.replace(problem, factors=ones)
    for name, change in subject.changes(subject.merged(problem), problem).items():
        subject.close(change, np.full(change.shape, 8.0), f"change of {name}")


@check("mlx-examples#982, mlx-lm#65")
def doubling_r_halves_the_scale(subject: Subject) -> None:
    """At a fixed alpha the same change, padded from r = 2 to 4 with zeros, counts half"""
    problem = subject.problem(r=2, lora_alpha=6, target_modules=["v_proj"])
    padded = {
        name: np.pad(one, ((0, 2), (0, 0)) if name.endswith("lora_A") else ((0, 0), (0, 2)))
        for name, one in (problem.factors or {}).items()
    }
    doubled = dataclasses.replace(problem, config=dict(problem.config) | {"r": 4}, factors=padded)
    one, other = (subject.changes(subject.merged(each), each) for each in (problem, doubled))
    subject.all_close(other, {name: change / 2 for name, change in one.items()}, "change")


@check("TensorRT-LLM#1668, vllm#6909")
def rslora_scales_by_the_root(subject: Subject) -> None:
    """use_rslora: alpha / sqrt(r), also after a pattern gave a module a rank of its own"""
    problem = subject.problem(
        r=4, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}
    )
    subject.all_close(subject.changes(subject.merged(problem), problem), change_of(problem), "change")


@check("litgpt#891, vllm#31534")
def change_stays_in_its_head(subject: Subject) -> None:
    """A change planted in one head of q changes that head's rows alone"""
    problem = subject.problem(r=2, lora_alpha=4, target_modules=["q_proj"])
    factors = {name: one.copy() for name, one in (problem.factors or {}).items()}
    for name, one in factors.items():
        if name.endswith("lora_B"):
            one[:2] = one[4:] = 0  # three heads of two features; the middle one keeps its rows
    problem = dataclasses.replace(problem, factors=factors)
    for name, change in subject.changes(subject.merged(problem), problem).items():
        touched = np.flatnonzero(np.abs(change).max(1) > 0).tolist()
        require(touched == [2, 3], f"{name}: rows {touched} changed, takes 2 and 3")
    subject.close(subject.forward(subject.build(problem)), _logits(subject, problem), "logits")


def _logits(subject: Subject, problem) -> np.ndarray:
    return OURS.forward(OURS.build(problem), subject.tokens)


@check("microsoft/LoRA#103, #105")
def every_mask_of_q_k_v(subject: Subject) -> None:
    """Merged = unmerged for each of the subsets of q, k, v, beside a module that is not square"""
    for mask in range(8):
        names = [name for i, name in enumerate(("q_proj", "k_proj", "v_proj")) if mask >> i & 1]
        problem = subject.problem(r=2, lora_alpha=3, target_modules=[*names, "down_proj"])
        expected = _logits(subject, problem)
        subject.close(subject.forward(subject.build(problem)), expected, f"logits with {names}")
        subject.close(subject.forward(subject.merged(problem)), expected, f"merged logits with {names}")


@check("peft#1588, #315")
def transposed_storage(subject: Subject) -> str:
    """The same results from weights that are stored (in, out), for every vector"""

    def test(vector, problem):
        linear = {f"layers.{i}.{name}.weight" for i in range(3) for name in vectors.ALL}
        base = {name: np.ascontiguousarray(one.T) if name in linear else one for name, one in problem.base.items()}
        made = subject.it.transposed(dataclasses.replace(problem, base=base))
        subject.close(subject.forward(made, vector.tokens), vector.expected["logits"], "logits")

    return _each(subject, test)


@check("TSVLC#5, FastVideo#781")
def starts_at_the_base(subject: Subject) -> None:
    """A fresh adapter leaves the logits as they are to the bit, and B has a gradient to leave zero by"""
    problem = subject.problem()
    zero = dataclasses.replace(problem, factors={name: one * 0 for name, one in (problem.factors or {}).items()})
    base = subject.forward(subject.build(zero))
    subject.close(base, _logits(subject, zero), "logits of the base")
    made = subject.build(subject.fresh(problem))
    require(np.array_equal(subject.forward(made), base), "logits differ from the base's at the start")
    moving = subject.named("gradients", made, subject.tokens, subject.targets, like=subject.problem().factors)
    require(all(one.any() for name, one in moving.items() if name.endswith("lora_B")), "the gradient of a B is zero")


@check("Kaiming's fan_in taken along the wrong axis of A; labml, mlx ports")
def a_starts_spread_out(subject: Subject) -> str:
    """A starts with full rank, at a size of about 1 / sqrt(in)"""
    problem = subject.problem()
    sizes = []
    for name, one in subject.named("factors", subject.build(subject.fresh(problem))).items():
        if name.endswith("lora_A"):
            rank = int(np.linalg.matrix_rank(one))
            require(rank == min(one.shape), f"{name}: starts with rank {rank}, takes {min(one.shape)}")
            sizes.append(float(np.sqrt((one**2).mean() * one.shape[1])))
    size = float(np.mean(sizes))
    require(0.1 < size < 5, f"A starts at {size:.2g} / sqrt(in), takes about 1")
    return f"root mean square {size:.2f} / sqrt(in); {3**-0.5:.2f} where uniform in +-1 / sqrt(in)"


@check("peft#793")
def gradient_of_a_is_zero_at_the_start(subject: Subject) -> None:
    """At B = 0 the gradient of A is exactly zero and that of B is not: B moves first"""
    made = subject.build(subject.fresh(subject.problem()))
    for name, one in subject.named("gradients", made, subject.tokens, subject.targets).items():
        if name.endswith("lora_A"):
            require(not one.any(), f"{name}: has a gradient of up to {np.abs(one).max():.2g}")
        else:
            require(bool(one.any()), f"{name}: has no gradient")


@check("peft#3449")
def one_adapter_at_weight_1(subject: Subject) -> None:
    """A combination of one adapter at weight 1 is that adapter"""
    problem = subject.problem()
    made = subject.it.combine(problem, [problem.factors or {}], [1.0])
    subject.close(subject.forward(made), _logits(subject, problem), "logits")


@check("peft#1155, #3013")
def sums_have_no_cross_terms(subject: Subject) -> None:
    """A weighted sum of adapters is W + sum of w (alpha / r) B A: not the product of summed A's and B's"""
    problem = subject.problem()
    rng = np.random.default_rng(1)
    other = subject.cast({name: rng.standard_normal(one.shape) for name, one in (problem.factors or {}).items()})
    second = dataclasses.replace(problem, factors=other)
    for weights in ([1.0, -1.0], [0.5, 2.0], [1.0, 1.0]):
        base = dict(problem.base)
        for each, weight in zip((problem, second), weights, strict=True):
            base |= {name: base[name] + weight * change for name, change in change_of(each).items()}
        made = subject.it.combine(problem, [problem.factors or {}, other], weights)
        zero = {name: np.zeros_like(one) for name, one in other.items()}
        expected = _logits(subject, dataclasses.replace(problem, base=subject.cast(base), factors=zero))
        subject.close(subject.forward(made), expected, f"logits at weights {weights}")


@check("aprender#2170, minLoRA, mlx-lm: conventions differ")
def unknown_settings_are_refused(subject: Subject) -> None:
    """A config with a field that does not exist is an error, not ignored"""
    problem = subject.problem()
    subject.build(problem)  # what is right is built
    wrong = dataclasses.replace(problem, config=dict(problem.config) | {"lora_alfa": 4})
    require(refused(lambda: subject.build(wrong)) is not None, "built with 'lora_alfa' as if it were not there")
