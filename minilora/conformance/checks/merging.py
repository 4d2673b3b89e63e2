"""Checks of merging, saving and loading, and of the state that goes with them."""

import dataclasses
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from minilora.conformance.checks.subject import Check, Failed, Subject, change_of, collect, offered, refused, require

CHECKS: list[Check] = []
check = collect(CHECKS)
CYCLES = 1000


@check("microsoft/LoRA#34, #61")
def merging_happens(subject: Subject) -> None:
    """After merge the weights are W + (alpha / r) B A, the flag says so, and logits stay as they were"""
    problem = subject.problem()
    made = subject.build(problem)
    before = subject.forward(made)
    require(not subject.it.is_merged(made), "is_merged is true before merging")
    subject.it.merge(made)
    require(bool(subject.it.is_merged(made)), "is_merged is false after merging")
    subject.all_close(subject.changes(made, problem), change_of(problem), "change")
    subject.close(subject.forward(made), before, "merged logits")


@check("peft#1355")
def merging_twice(subject: Subject) -> None:
    """Merging what is merged changes nothing, or is refused"""
    problem = subject.problem()
    made = subject.merged(problem)
    once = subject.weights(made, problem)
    refused(lambda: subject.it.merge(made))
    subject.all_close(subject.weights(made, problem), once, "weights after a second merge")


@check("peft#1355")
def unmerging_twice(subject: Subject) -> None:
    """Unmerging what is not merged changes nothing, or is refused"""
    problem = subject.problem()
    made = subject.build(problem)
    refused(lambda: subject.it.unmerge(made))
    subject.all_close(subject.weights(made, problem), problem.base, "weights after unmerging what was not merged")


@check("LyCORIS#264, sglang#18883")
def no_drift_over_cycles(subject: Subject) -> None:
    """The base is the same to the bit after a thousand times merge and unmerge"""
    problem = subject.problem()
    made = subject.build(problem)
    for _ in range(CYCLES):
        subject.it.merge(made)
        subject.it.unmerge(made)
    for name, one in subject.weights(made, problem).items():
        off = np.abs(one - problem.base[name]).max()
        require(off == 0, f"{name}: off by {off:.2g} after {CYCLES} cycles")


@check("torchtune#1101, mlx-lm#1564")
def small_changes_survive_merging(subject: Subject) -> None:
    """Of a change 1e-4 the size of W, merging loses no more than rounding W + (alpha / r) B A once does"""
    problem = subject.problem(r=2, lora_alpha=2, target_modules=["q_proj", "up_proj"])
    small = {name: one * 1e-2 for name, one in (problem.factors or {}).items()}
    problem = dataclasses.replace(problem, factors=subject.cast(small))
    weights = subject.weights(subject.merged(problem), problem)
    for name, change in change_of(problem).items():
        exact = problem.base[name].astype("float64") + change
        spacing = np.spacing(np.abs(exact).astype(subject.dtype)).astype("float64")
        off = np.abs(weights[name] - exact)
        kept = 1 - np.linalg.norm(off) / np.linalg.norm(change)
        require(bool((off <= 2 * spacing).all()), f"{name}: {kept:.1%} of the change is kept")


@check("peft#3756, #3498")
def any_sequence_of_calls(subject: Subject) -> None:
    """After any sequence of merge and unmerge, weights, flag and logits are those of the state it is in"""
    problem = subject.problem()
    made, merged = subject.build(problem), False
    expected, rng = subject.forward(made), np.random.default_rng(0)
    changes = change_of(problem)
    for _ in range(60):
        action = rng.choice(["merge", "unmerge", "look"])
        if action != "look":
            refused(partial(getattr(subject.it, action), made))
            merged = action == "merge"
        want = {name: one + changes.get(name, 0.0) * merged for name, one in problem.base.items()}
        subject.all_close(subject.weights(made, problem), want, f"weights after {action}")
        require(bool(subject.it.is_merged(made)) == merged, f"is_merged is {not merged} after {action}")
        subject.close(subject.forward(made), expected, f"logits after {action}")


@check("peft#2184")
def removing_restores_the_base(subject: Subject) -> None:
    """With the adapter off logits are the base's to the bit, and after merging weights and logits to rounding"""
    _removing(subject, "all_modules")


@check("peft#3306, and a warning of PEFT's own")
def removing_restores_biases(subject: Subject) -> None:
    """The same for an adapter that trained biases"""
    _removing(subject, "bias_all")


def _removing(subject: Subject, name: str) -> None:
    problem = subject.problem(name)
    zero = {name: one * 0 for name, one in (problem.factors or {}).items() if ".lora_" in name}
    biases = {name: problem.base[name] for name in (problem.factors or {}) if name.endswith(".bias")}
    expected = subject.forward(subject.build(dataclasses.replace(problem, factors={**zero, **biases})))
    made = subject.build(problem)
    subject.it.disable(made)
    require(
        np.array_equal(subject.forward(made), expected), "logits with the adapter off are not the base's to the bit"
    )
    made = subject.merged(problem)
    subject.it.disable(made)
    subject.close(subject.forward(made), expected, "logits with the adapter off after merging")
    subject.all_close(subject.weights(made, problem), problem.base, "weights with the adapter off after merging")


def _round_trip(subject: Subject, problem, spoil=None, merge_first: bool = False):
    """Build, save, perhaps do something to the files, load."""
    with tempfile.TemporaryDirectory() as folder:
        made = subject.build(problem)
        if merge_first:
            subject.it.merge(made)
        subject.it.save(made, Path(folder))
        if spoil is not None:
            spoil(Path(folder))
        return subject.it.load(problem, Path(folder))


@check("microsoft/LoRA#190")
def saved_in_any_mode(subject: Subject) -> None:
    """Saved merged or not, loaded and merged or not: the same logits"""
    problem = subject.problem()
    expected = subject.forward(subject.build(problem))
    for merge_first in (False, True):
        made = _round_trip(subject, problem, merge_first=merge_first)
        subject.close(subject.forward(made), expected, f"logits (saved merged: {merge_first})")
        subject.it.merge(made)
        subject.close(subject.forward(made), expected, f"merged logits (saved merged: {merge_first})")


@check("diffusers#6087, verl#5337")
def loading_keeps_every_scale(subject: Subject) -> str:
    """Round trip with alpha different from r, ranks and alphas by module, and the keys in another order"""

    def test(name: str) -> None:
        problem = subject.problem(name)
        expected = subject.forward(subject.build(problem))
        for spoil in (None, _reverse_keys):
            made = _round_trip(subject, problem, spoil)
            subject.close(subject.forward(made), expected, "logits")

    return offered(("alpha", "rank_pattern", "alpha_pattern", "rslora"), test)


def _reverse_keys(folder: Path) -> None:
    """Write each safetensors file again with its arrays in the reverse order."""
    for path in folder.rglob("*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys(), reverse=True)}
            metadata = file.metadata()
        safetensors.numpy.save_file(arrays, path, metadata)


@check("peft#3306, unsloth#2343")
def biases_are_saved(subject: Subject) -> None:
    """Trained biases come back, in both modes that train them"""
    for name in ("bias_all", "bias_lora_only"):
        problem = subject.problem(name)
        expected = subject.forward(subject.build(problem))
        subject.close(subject.forward(_round_trip(subject, problem)), expected, f"logits of {name}")


@check("peft#2115, vllm#48019")
def wrong_keys_are_refused(subject: Subject) -> str | None:
    """A file whose arrays are named for another module is refused or warned of, not loaded as if they were absent"""
    problem = subject.problem()
    expected = subject.forward(_round_trip(subject, problem))  # what is right is loaded

    def rename(folder: Path) -> None:
        found = list(folder.rglob("*.safetensors"))
        if not found:
            raise NotImplementedError("no safetensors file to rename keys in")
        for path in found:
            with safetensors.safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            one = min((name for name in arrays if "lora_B" in name), default=min(arrays))
            arrays[f"wrong_{one}"] = arrays.pop(one)
            safetensors.numpy.save_file(arrays, path, metadata)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made = _round_trip(subject, problem, rename)
        except NotImplementedError:
            raise
        except Exception:
            return None
    if any("lora_" in str(one.message) for one in said):
        return "loaded, with a warning that names the keys"
    off = float(np.abs(subject.forward(made) - expected).max())
    raise Failed(f"loaded although an array has another name; logits are off by {off:.2g}")
