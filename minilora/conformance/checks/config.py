"""Checks of what a config selects, and of configs that should be refused."""

import dataclasses
from functools import partial

import numpy as np

from minilora.conformance.checks.subject import Check, Subject, collect, refused, require, same_names

CHECKS: list[Check] = []
check = collect(CHECKS)


def _control(subject: Subject) -> None:
    """What is right is built: else a refusal of what is wrong would say nothing."""
    same_names(_modules(subject, target_modules=["v_proj"]), [f"layers.{i}.v_proj" for i in range(3)], "modules")


def _modules(subject: Subject, **config) -> set[str]:
    """Which modules a config adapts."""
    problem = dataclasses.replace(
        subject.problem(), config={"r": 2, "lora_alpha": 2} | config, factors=None, modules=None
    )
    return {name.rpartition(".")[0] for name in subject.named("factors", subject.build(problem)) if ".lora_" in name}


@check("peft#1959, #3533")
def a_target_that_matches_nothing(subject: Subject) -> None:
    """A target that matches no module is an error that names it, also beside one that does"""
    _control(subject)
    for targets in (["qproj"], ["q_proj", "query"], r"layers\.9\..*"):
        said = refused(partial(_modules, subject, target_modules=targets))
        require(said is not None, f"target_modules={targets!r}: built as if all were well")
        culprit = targets if isinstance(targets, str) else targets[-1]
        require(
            culprit in (said or "") or repr(culprit) in (said or ""),
            f"target_modules={targets!r}: the error does not name {culprit!r}",
        )


@check("mlx-examples#1289, peft#2155")
def exactly_these_layers(subject: Subject) -> None:
    """layers_to_transform: the first, the last, two of three, each exactly"""
    _control(subject)
    for given, layers in ((0, [0]), (2, [2]), ([1], [1]), ([0, 2], [0, 2])):
        got = _modules(subject, target_modules=["v_proj"], layers_to_transform=given)
        same_names(got, [f"layers.{layer}.v_proj" for layer in layers], f"modules with layers_to_transform={given!r}")


@check("mlx-examples#1289")
def a_layer_that_is_not_there(subject: Subject) -> None:
    """A layer beyond the last is an error, alone and beside one that is there"""
    _control(subject)
    for given in (3, [0, 3]):
        said = refused(partial(_modules, subject, target_modules=["v_proj"], layers_to_transform=given))
        require(said is not None, f"layers_to_transform={given!r} of three layers: built as if all were well")


@check("mlx-examples#1289")
def no_layers(subject: Subject) -> None:
    """An empty list of layers means every layer, as in PEFT, or is refused; never some"""
    _control(subject)
    got: set[str] = set()

    def build() -> None:
        got.update(_modules(subject, target_modules=["v_proj"], layers_to_transform=[]))

    if refused(build) is None:
        same_names(got, [f"layers.{layer}.v_proj" for layer in range(3)], "modules with layers_to_transform=[]")


@check("peft#2155")
def names_are_matched_whole(subject: Subject) -> None:
    """A name matches a whole part of a path: 'proj' or '_proj' is not 'q_proj', and '1.q_proj' is one module"""
    _control(subject)
    for part in ("proj", "_proj"):
        require(
            refused(partial(_modules, subject, target_modules=[part])) is not None,
            f"{part!r} matched something",
        )
    same_names(_modules(subject, target_modules=["1.q_proj"]), ["layers.1.q_proj"], "modules with '1.q_proj'")


@check("peft#2018")
def a_tied_head(subject: Subject) -> None:
    """Adapting the tied head or the embedding is refused, or leaves the other of the two alone"""
    _control(subject)
    problem = subject.problem()
    for target in ("lm_head", "embed_tokens"):
        config = {"r": 2, "lora_alpha": 2, "target_modules": [target]}
        asked = dataclasses.replace(problem, config=config, factors=None, modules=None)
        if refused(partial(subject.build, asked)) is None:
            made = subject.merged(asked)
            table = subject.weights(made, problem)["embed_tokens.weight"]
            require(
                np.array_equal(table, problem.base["embed_tokens.weight"]),
                f"{target}: the embedding changed with the head",
            )


@check("peft LoraConfig")
def impossible_settings(subject: Subject) -> None:
    """r = 0 or below, a dropout below 0 or above 1, and a bias mode that does not exist are refused"""
    _control(subject)
    for wrong in ({"r": 0}, {"r": -2}, {"lora_dropout": 1.5}, {"lora_dropout": -0.1}, {"bias": "some"}):
        said = refused(partial(_modules, subject, target_modules=["v_proj"], **wrong))
        require(said is not None, f"{wrong}: built as if all were well")


@check("peft#2155")
def excluded_modules(subject: Subject) -> None:
    """exclude_modules takes out what target_modules put in"""
    _control(subject)
    got = _modules(subject, target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.v_proj", "q_proj"])
    same_names(got, ["layers.0.v_proj", "layers.2.v_proj"], "modules")
