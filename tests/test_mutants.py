"""Planted bugs: the tests that own a property are run on a package that breaks it, and must fail.

A mutant is a piece of a function's source and what stands there instead, so that the bug itself can be read; where the
source has moved on, the mutant says so rather than pass emptily. Most are bugs that LoRA implementations really had.
"""

import inspect
import sys
import tempfile
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import test_checkpoint
import test_lora
import test_model
import test_ops
import test_opt
import test_optim
import test_train
from test_lora import row

import minilora as ml
from minilora import checkpoint, lora, model, ops, opt, optim, train


class Mutant(NamedTuple):
    """In `owner.name`, every `right` piece of the source becomes the `wrong` one; each of the tests must notice."""

    owner: Any  # a module or a class
    name: str
    pieces: dict[str, str]  # right -> wrong
    tests: list[Callable[[], None]]


def on_example(test, **example):
    """A property on one example: searching and shrinking would take long and show nothing more."""
    return partial(test.hypothesis.inner_test, **example)


MERGED_IS_UNMERGED = on_example(test_lora.test_merged_is_unmerged, settings=test_lora.SQUARE)
MERGE_LEAVES_THE_BASE = on_example(
    test_lora.test_merge_makes_new_arrays_and_leaves_the_base_and_the_adapter, settings=test_lora.SQUARE
)
OPT_LOGITS = on_example(
    test_opt.test_logits_are_those_of_opt_written_out,
    config=model.ModelConfig(
        vocab_size=11, context_length=7, d_model=6, n_heads=3, n_layers=2, d_ff=5, dtype="float64"
    ),
    seed=0,
)
CAUSAL = on_example(test_model.test_a_later_token_changes_no_earlier_logit, t=3, seed=0)


def in_a_folder(test, **example):
    """A test that writes files."""

    def run():
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder), **example)

    run.__name__ = test.__name__
    return run


def operation_test(name):
    return on_example(test_ops.test_operation_and_gradients, name=name, lead=(2,), sizes=(7, 3, 5), seed=0)


def selection_test(*arguments, **settings):
    return partial(test_lora.test_selected_modules, *row(*arguments, **settings))


MUTANTS = {
    "alpha in place of alpha / r": Mutant(
        lora.LoraConfig,
        "scaling_of",
        {" / (math.sqrt(r) if self.use_rslora else r)": ""},
        [
            test_lora.test_eight_ones_times_two,
            test_lora.test_ranks_and_scalings_of_an_adapter,
            test_model.test_adapted_logits_are_the_plain_models,
        ],
    ),
    "rsLoRA ignored": Mutant(
        lora.LoraConfig,
        "scaling_of",
        {"(math.sqrt(r) if self.use_rslora else r)": "r"},
        [test_lora.test_rslora_scales_by_the_root],
    ),
    "a rank of its own does not change the scale": Mutant(
        lora.LoraConfig,
        "scaling_of",
        {"self.rank_of(path)": "self.r"},
        [test_lora.test_ranks_and_scalings_of_an_adapter],
    ),
    "B transposed in the forward pass, where it is square": Mutant(
        ops,
        "lora_linear",
        {"np.ascontiguousarray(lora_B.mT)": "(lora_B if len(lora_B) == lora_B.shape[1] else lora_B.T)"},
        [MERGED_IS_UNMERGED],
    ),
    "B A transposed in merge, where it is square": Mutant(
        lora,
        "weight_changes",
        {
            "path: adapter.scaling": "path: (lambda w: w.T if len(w) == w.shape[1] else w)(adapter.scaling",
            'pair["lora_A"].astype("float64")': 'pair["lora_A"].astype("float64"))',
        },
        [MERGED_IS_UNMERGED],
    ),
    "merge writes to the base": Mutant(
        lora,
        "merge",
        {
            "array.copy() for": "array for",
            'merged[f"{path}.weight"] = (weight + change)': "weight += change",
        },
        [MERGE_LEAVES_THE_BASE],
    ),
    "merging twice passes": Mutant(
        lora,
        "merge",
        {"check_base(params, adapter)": "pass"},
        [test_lora.test_merging_twice_is_an_error, test_lora.test_merging_into_another_base_is_an_error],
    ),
    "merged in float32": Mutant(
        lora,
        "weight_changes",
        {'pair["lora_B"].astype("float64") @ pair["lora_A"].astype("float64")': 'pair["lora_B"] @ pair["lora_A"]'},
        [test_lora.test_merge_keeps_small_changes_of_float32],
    ),
    "merge forgets the biases": Mutant(
        lora,
        "merge",
        {"adapter.biases.items()": "()"},
        [
            MERGED_IS_UNMERGED,
            MERGE_LEAVES_THE_BASE,
        ],
    ),
    "bias none trains every bias": Mutant(
        lora,
        "bias_paths",
        {"return []": "pass"},
        [
            test_lora.test_with_bias_none_the_factors_train,
            partial(test_lora.test_counts_by_the_closed_form, {"r": 8}, 2048),
        ],
    ),
    "bias lora_only trains no bias": Mutant(
        lora,
        "bias_paths",
        {"return select_modules(params, config)": "return []"},
        [test_lora.test_with_bias_lora_only_the_biases_of_adapted_modules_train_too],
    ),
    "bias all leaves the layer norms out": Mutant(
        lora,
        "bias_paths",
        {'if "bias" in module]': 'if "bias" in module and "norm" not in path]'},
        [test_lora.test_with_bias_all_every_bias_trains_too],
    ),
    "trained biases are not used": Mutant(
        model,
        "_bias",
        {'adapter.biases.get(path, module["bias"])': 'module["bias"]'},
        [
            partial(test_lora.test_every_bias_that_trains_is_used, "all"),
            MERGED_IS_UNMERGED,
            test_model.test_adapted_logits_are_the_plain_models,
        ],
    ),
    "adapter biases are views of the base's": Mutant(
        lora,
        "init_adapter",
        {'["bias"].copy()': '["bias"]'},
        [test_lora.test_an_adapter_is_made_of_copies],
    ),
    "layers counted from one": Mutant(
        lora,
        "_targeted",
        {"{layer % n_layers for": "{(layer - 1) % n_layers for", "== layer % n_layers": "== (layer - 1) % n_layers"},
        [selection_test("0.q 0.v", layers=0), selection_test("10.q 10.v", n_layers=11, layers=-1)],
    ),
    "layer 1 is layer 10 too": Mutant(
        lora,
        "_targeted",
        {'int(path.split(".")[1]) in chosen': 'any(path.startswith(f"layers.{i}") for i in chosen)'},
        [selection_test("1.q 1.v", n_layers=11, layers=1)],
    ),
    "names match as substrings": Mutant(
        lora,
        "is_match",
        {'path == one or path.endswith(f".{one}")': "one in path"},
        [selection_test("0.q", n_layers=11, targets=["0.q_proj"])],
    ),
    "a target that matches nothing passes": Mutant(
        lora,
        "matching_paths",
        {"if not matched:": "if False:"},
        [
            partial(
                test_lora.test_refused_selections,
                *row("target_modules: 'q_porj' matches no module", targets=["v_proj", "q_porj"]),
            )
        ],
    ),
    "a target that the layers leave out passes": Mutant(
        lora,
        "_targeted",
        {"if not in_layers & set(matched):": "if False:"},
        [
            partial(
                test_lora.test_refused_selections,
                *row("'layers.0.q_proj' is in none", targets=["layers.0.q_proj", "v_proj"], layers=[1]),
            )
        ],
    ),
    "an exclusion that takes nothing out passes": Mutant(
        lora,
        "select_modules",
        {"if not targeted & set(matched):": "if False:"},
        [partial(test_lora.test_refused_selections, *row("'o_proj' takes nothing out", exclude=["o_proj"]))],
    ),
    "patience that can never run out passes": Mutant(
        train.TrainConfig,
        "_check_length",
        {"self.patience > within": "self.patience > 10**9"},
        [partial(test_train.test_patience_that_can_never_run_out_is_refused, 60, 3, 19)],
    ),
    "a sequence without a target is trained on": Mutant(
        train,
        "check_each_counts",
        {"if len(silent):": "if False:"},
        [test_train.test_every_training_sequence_needs_a_target],
    ),
    "a merged weight may be infinite": Mutant(
        lora,
        "merge",
        {"if not np.isfinite(array).all():": "if False:"},
        [partial(test_lora.test_a_merge_that_overflows_is_refused_and_the_module_named, "float32", 1e30)],
    ),
    "what is saved is not checked": Mutant(
        ml,
        "save_adapter",
        {'check_whole("adapter", adapter)': "pass"},
        [
            in_a_folder(test_checkpoint.test_an_adapter_that_could_not_be_loaded_is_not_saved, wrong=wrong)
            for wrong in ("NaN", "float16", "transposed A")
        ],
    ),
    "a scaling of its own is lost when it is saved": Mutant(
        ml,
        "save_adapter",
        {"if got != takes:": "if False:"},
        [in_a_folder(test_checkpoint.test_an_adapter_that_could_not_be_loaded_is_not_saved, wrong="another scaling")],
    ),
    "arrays of other modules than the config's are read": Mutant(
        checkpoint,
        "read_adapter",
        {"check_shapes(str(read.path), found, shapes)": "pass"},
        [
            in_a_folder(
                test_checkpoint.test_the_file_and_the_field_at_fault_are_named,
                fields={"layers_to_transform": [0, 1]},
                says="adapter_model.safetensors: lacks nothing; has unexpected layers.2.q_proj",
            )
        ],
    ),
    "both factors start at zero": Mutant(
        lora,
        "init_factors",
        {"return uniform(n_in**-0.5, zero_A.shape), zero_B": "return zero_A, zero_B"},
        [partial(test_lora.test_B_moves_first, True)],
    ),
    "both factors start random": Mutant(
        lora,
        "init_factors",
        {'zero_A.shape), zero_B\n    if init == "gaussian"': 'zero_A.shape), zero_B + 1\n    if init == "gaussian"'},
        [partial(test_lora.test_starts_at_the_base_to_the_bit, True), partial(test_lora.test_B_moves_first, True)],
    ),
    "A starts at the scale of r inputs": Mutant(
        lora,
        "init_factors",
        {"return uniform(n_in**-0.5, zero_A.shape), zero_B": "return uniform(r**-0.5, zero_A.shape), zero_B"},
        [partial(test_lora.test_distribution_of_the_start, True, test_lora.uniform(test_lora.IN**-0.5), None)],
    ),
    "one dropout mask shared by all tokens": Mutant(
        lora.Adapter,
        "dropout_mask",
        {"ops.dropout_mask(x.shape,": "ops.dropout_mask(x.shape[-1:],"},
        [test_lora.test_identical_rows_differ_in_training, partial(test_lora.test_masks_are_of_elements, 0.5)],
    ),
    "one dropout mask shared by all modules": Mutant(
        lora.Adapter,
        "dropout_mask",
        {"lora_dropout, rng,": "lora_dropout, np.random.default_rng(0),"},
        [test_lora.test_modules_with_the_same_input_have_different_masks, test_lora.test_training_is_with_dropout],
    ),
    "dropout never scaled": Mutant(
        ops,
        "dropout_mask",
        {"keep, 1 / (1 - p)": "keep, 1.0"},
        [
            partial(test_ops.test_mask_values_are_zero_or_the_inverse_of_what_stays, 0.5, "float64"),
            test_ops.test_mean_over_masks_is_the_evaluation,
            test_lora.test_mean_over_masks_is_close_to_evaluation,
        ],
    ),
    "dropout forgotten in training": Mutant(
        lora.Adapter,
        "dropout_mask",
        {"if rng is None or": "if True or"},
        [test_lora.test_training_is_with_dropout, test_lora.test_identical_rows_differ_in_training],
    ),
    "dropout left on in evaluation": Mutant(
        lora.Adapter,
        "dropout_mask",
        {"lora_dropout, rng, ": "lora_dropout, rng or np.random.default_rng(), ", "rng is None or ": ""},
        [test_lora.test_evaluation_is_without_dropout],
    ),
    "dropout of the frozen path too": Mutant(
        ops,
        "lora_linear",
        {"y += x @ weight.T": "y += dropped @ weight.T"},
        [
            test_ops.test_the_mask_drops_the_input_of_A_alone,
            test_lora.test_dropout_leaves_the_base_alone,
            operation_test("lora_linear with dropout"),
        ],
    ),
    "gradient of A without its scale": Mutant(
        ops,
        "lora_linear",
        {"scaling * (g @ lora_B)": "g @ lora_B"},
        [
            operation_test("lora_linear"),
            partial(
                test_model.test_gradients_of_factors_and_biases_are_autograds,
                test_model.random_targets(test_model.SMALL),
            ),
        ],
    ),
    "gradient of A without the mask": Mutant(
        ops,
        "lora_linear",
        {"h(g).mT @ dropped": "h(g).mT @ x"},
        [operation_test("lora_linear with dropout"), test_model.test_gradients_with_dropout_are_autograds],
    ),
    "no causal mask": Mutant(
        ops,
        "causal_attention",
        {"    p += future(": "    _ = future("},
        [
            CAUSAL,
            test_ops.test_attention_sees_no_later_token,
            operation_test("causal_attention"),
        ],
    ),
    "a token sees the next one": Mutant(
        ops,
        "future",
        {"k=-1": "k=-2"},
        [CAUSAL, test_ops.test_the_first_token_attends_to_itself],
    ),
    "heads own every other feature": Mutant(
        ops,
        "split_heads",
        {"n_heads, d // n_heads)": "d // n_heads, n_heads).swapaxes(-1, -2)"},
        [partial(test_ops.test_a_change_for_one_head_alters_that_heads_features_alone, 1, 0)],
    ),
    "padding counted in the loss": Mutant(
        ops,
        "_target_columns",
        {"(targets >= 0).astype": "(targets >= -1).astype"},
        [test_ops.test_padding_counts_for_nothing, operation_test("cross_entropy")],
    ),
    "decay coupled": Mutant(
        optim.AdamW,
        "update_in_place",
        {
            "b1, b2 = self.betas": "b1, b2 = self.betas; gradient = gradient + self.weight_decay * parameters",
            "1 - lr * self.weight_decay": "lr**0",
        },
        [
            test_optim.test_a_hundred_steps_are_the_textbooks,
            on_example(test_optim.test_decay_is_decoupled, size=100.0, decay=0.4),
            test_optim.test_without_a_gradient_each_step_shrinks_by_lr_times_decay,
        ],
    ),
    "decay without the learning rate": Mutant(
        optim.AdamW,
        "update_in_place",
        {"1 - lr * self.weight_decay": "1 - lr**0 * self.weight_decay"},
        [
            test_optim.test_without_a_gradient_each_step_shrinks_by_lr_times_decay,
            test_optim.test_without_a_gradient_a_lora_change_shrinks_by_the_square,
        ],
    ),
    "OPT's offset of two positions forgotten": Mutant(
        opt,
        "_params",
        {"[POSITION_OFFSET:]": "[:-POSITION_OFFSET]"},
        [OPT_LOGITS],
    ),
    "first moment not corrected": Mutant(
        optim.AdamW,
        "update_in_place",
        {"lr / (1 - b1**step)": "lr"},
        [test_optim.test_the_first_step_is_the_learning_rate, test_optim.test_a_hundred_steps_are_the_textbooks],
    ),
}


def plant(monkeypatch, mutant, bug):
    """Compile the function again, with its bug or as it is."""
    function = getattr(mutant.owner, mutant.name)
    source = textwrap.dedent(inspect.getsource(function))
    for right, wrong in mutant.pieces.items():
        assert source.count(right) == 1, f"{mutant.name} no longer has {right!r}; it reads\n{source}"
        source = source.replace(right, wrong if bug else right)
    made = {}
    exec(source, vars(sys.modules[function.__module__]), made)
    monkeypatch.setattr(mutant.owner, mutant.name, made[mutant.name])


@pytest.mark.parametrize(
    ("mutant", "test"),
    [
        pytest.param(mutant, test, id=f"{bug}-{getattr(test, 'func', test).__name__}")
        for bug, mutant in MUTANTS.items()
        for test in mutant.tests
    ],
)
def test_mutant_is_caught(mutant, test):
    """And the same function compiled again without the bug passes, so it is the bug that is caught."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch, mutant, bug=False)
        test()
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch, mutant, bug=True)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test()
