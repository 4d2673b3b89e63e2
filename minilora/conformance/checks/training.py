"""Checks of training: dropout, what trains and what does not, decay, and how the knobs hang together."""

import dataclasses

import numpy as np

from minilora.conformance import vectors
from minilora.conformance.checks.subject import Check, Subject, change_of, collect, require, same_names
from minilora.conformance.interface import Optimizer

CHECKS: list[Check] = []
check = collect(CHECKS)
PASSES = 300


@check("peft#3753, transformers#34469")
def evaluation_is_deterministic(subject: Subject) -> None:
    """With dropout in the config, evaluation is the same to the bit, also after a training pass"""
    made, tokens = subject.build(subject.problem("dropout")), vectors.load("dropout").tokens
    first = subject.forward(made, tokens)
    for what in ("again", "after a training pass"):
        require(np.array_equal(subject.forward(made, tokens), first), f"evaluation differs {what}")
        subject.forward(made, training=True)
    subject.close(first, vectors.load("dropout").expected["logits"], "logits")


@check("aprender#2170")
def dropout_acts_in_training(subject: Subject) -> None:
    """At p = 0.5 two training passes differ from evaluation and from each other"""
    made = subject.build(subject.problem("dropout"))
    evaluated, one, other = subject.forward(made), *(subject.forward(made, training=True) for _ in range(2))
    require(not np.array_equal(one, evaluated), "training equals evaluation: dropout is not wired in")
    require(not np.array_equal(one, other), "two training passes drop the same")


@check("aprender#2170")
def dropout_keeps_the_mean(subject: Subject) -> None:
    """Over many masks the change has its size without dropout: kept inputs are divided by 1 - p, once"""
    problem = subject.problem(r=2, lora_alpha=4, lora_dropout=0.2, target_modules=["layers.2.down_proj"])
    small = {name: one * 0.03 for name, one in (problem.factors or {}).items()}  # so small that logits are linear in it
    zero = {name: one * 0 for name, one in small.items()}
    made, off = (subject.build(dataclasses.replace(problem, factors=subject.cast(one))) for one in (small, zero))
    base = subject.forward(off)
    change = (subject.forward(made) - base).ravel()
    mean = np.mean([subject.forward(made, training=True) - base for _ in range(PASSES)], axis=0).ravel()
    ratio = float(mean @ change / (change @ change))
    require(0.85 < ratio < 1.15, f"the mean change over {PASSES} masks is {ratio:.2f} of that without dropout")


@check("aprender#2170; p taken for 1 - p")
def inputs_are_dropped_at_their_rate(subject: Subject) -> None:
    """At p = 0.2 one input of A is lost one time in 5, and two of two one time in 25: inputs are what is dropped"""
    for n_inputs, expected in ((1, 0.2), (2, 0.2**2)):
        problem = subject.problem(r=1, lora_alpha=4, lora_dropout=0.2, target_modules=["layers.2.o_proj"])
        factors = {name: one * 0 for name, one in (problem.factors or {}).items()}
        factors["layers.2.o_proj.lora_A"][0, :n_inputs] = (1.0, 0.6)[:n_inputs]
        factors["layers.2.o_proj.lora_B"] = np.ones_like(factors["layers.2.o_proj.lora_B"])
        factors["layers.2.o_proj.lora_B"][0] = -2.0  # all features alike would be lost in the layer norm
        made, off = (subject.build(dataclasses.replace(problem, factors=one)) for one in (factors, _zeros(factors)))
        base = subject.forward(off)
        passes = [subject.forward(made, training=True) for _ in range(PASSES // 3)]
        lost = float(np.mean([np.isclose(one, base, rtol=0, atol=1e-5).all(-1) for one in passes]))
        require(abs(lost - expected) < 0.25 * expected + 0.01, f"{n_inputs} of {n_inputs} inputs are lost at a rate of "
                f"{lost:.3f}, takes {expected:.2f}")  # fmt: skip


def _zeros(factors) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(one) for name, one in factors.items()}


@check("minLoRA source")
def tokens_have_masks_of_their_own(subject: Subject) -> None:
    """Tokens and sequences that are all alike come out different in training: each has a mask of its own"""
    problem = subject.problem(r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["layers.2.down_proj"])
    base = dict(problem.base)
    base["embed_positions.weight"] = np.zeros_like(base["embed_positions.weight"])
    made = subject.build(dataclasses.replace(problem, base=base))
    tokens = np.full((2, 6), 3)
    alike = subject.forward(made, tokens)
    require(np.allclose(alike, alike[0, 0], atol=1e-4), "tokens that are alike differ in evaluation")
    rows = subject.forward(made, tokens, training=True)
    require(not np.allclose(rows[0], rows[0, 0], atol=1e-6), "all tokens are dropped alike: one mask for all")
    require(not np.allclose(rows[0], rows[1], atol=1e-6), "all sequences are dropped alike: one mask for the batch")


@check("diffusers#2245, labml source")
def base_does_not_train(subject: Subject) -> None:
    """After steps of AdamW with decay the base is the same to the bit, and the factors are not"""
    problem = subject.problem()
    made = subject.build(problem)
    subject.it.train(made, subject.tokens, subject.targets, Optimizer(steps=3, lr_A=0.01, lr_B=0.01, weight_decay=0.1))
    for name, one in subject.weights(made, problem).items():
        require(np.array_equal(one, problem.base[name]), f"{name}: changed by training")
    moved = subject.named("factors", made, like=problem.factors)
    require(
        all(not np.array_equal(one, (problem.factors or {})[name]) for name, one in moved.items()),
        "a factor did not move",
    )


@check("diffusers#2245, litgpt source")
def trainable_names(subject: Subject) -> None:
    """Exactly the factors train, and the biases that the config says: none, lora_only, all"""
    for name in ("all_modules", "bias_lora_only", "bias_all"):
        problem = subject.problem(name)
        same_names(subject.it.trainable(subject.build(problem)), problem.factors or {}, f"what trains in {name}")


@check("unsloth#5747")
def decay_pulls_towards_the_base(subject: Subject) -> None:
    """With zero gradients A and B shrink by 1 - lr wd a step, so the change by its square; the base stays"""
    problem = subject.problem()
    made, steps = subject.build(problem), 5
    subject.it.decay(made, Optimizer(steps=steps, lr_A=0.1, lr_B=0.1, weight_decay=0.5))
    subject.it.merge(made)
    shrunk = {name: one * (1 - 0.1 * 0.5) ** (2 * steps) for name, one in change_of(problem).items()}
    subject.all_close(subject.changes(made, problem), shrunk, "change")


@check("Kingma and Ba 2015, arXiv 1412.6980")
def step_size_is_the_rate(subject: Subject) -> None:
    """The first step of AdamW at eps = 0 moves each number by its learning rate, whatever its gradient"""
    problem = subject.problem()
    made = subject.build(problem)
    subject.it.train(made, subject.tokens, subject.targets, Optimizer(steps=1, lr_A=0.01, lr_B=0.02, eps=0.0))
    for name, one in subject.named("factors", made, like=problem.factors).items():
        moved = np.abs(one - (problem.factors or {})[name])
        rate = 0.01 if name.endswith("lora_A") else 0.02
        subject.close(moved[moved > 0], np.full(int((moved > 0).sum()), rate), f"step of {name}")


@check("LoRA Without Regret, Thinking Machines 2025")
def four_knobs_are_two(subject: Subject) -> None:
    """(alpha, A, lr of A, lr of B) and (alpha / (p q), p A, p lr of A, q lr of B) train alike, at eps = 0"""
    p, q, steps = 4.0, 0.5, 20
    one = subject.problem(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"])
    factors = {name: array * (p if name.endswith("lora_A") else q) for name, array in (one.factors or {}).items()}
    other = dataclasses.replace(
        one, config=dict(one.config) | {"lora_alpha": 6 / (p * q)}, factors=subject.cast(factors)
    )
    ends = []
    for problem, rates in ((one, (0.01, 0.01)), (other, (p * 0.01, q * 0.01))):
        made = subject.build(problem)
        subject.it.train(made, subject.tokens, subject.targets, Optimizer(steps, *rates, eps=0.0))
        ends.append(subject.forward(made))
    require(not np.allclose(ends[0], subject.forward(subject.build(one))), "training changes nothing")
    subject.close(ends[1], ends[0], f"logits after {steps} steps", max(subject.tolerance, 1e-8))


@check("optimizers with one group for all")
def the_rate_of_b_counts(subject: Subject) -> None:
    """With a learning rate of zero for A only B moves, and the other way round"""
    problem = subject.problem()
    for still, rates in (("lora_A", (0.0, 0.01)), ("lora_B", (0.01, 0.0))):
        made = subject.build(problem)
        subject.it.train(made, subject.tokens, subject.targets, Optimizer(1, *rates))
        for name, one in subject.named("factors", made, like=problem.factors).items():
            same = np.array_equal(one, (problem.factors or {})[name])
            require(
                same == name.endswith(still), f"{name}: {'stays' if same else 'moves'} where only {still} has rate 0"
            )
