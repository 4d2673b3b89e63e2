"""The checks of single fields: what they take for near, and how they describe what they got."""

import numpy as np
import pytest

import minilora as ml
from minilora.checks import check_kind, described, nearest

OURS = ["r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "init_lora_weights", "use_rslora"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("lora_alfa", "lora_alpha"), ("rs_lora", "use_rslora"), ("target_module", "target_modules"),
     ("use_rs_lora", "use_rslora"), ("dropout", "lora_dropout")],
)  # fmt: skip
def test_a_name_that_is_near_is_offered(name, near):
    assert nearest(name, OURS) == f" (did you mean {near!r}?)"


@pytest.mark.parametrize("name", ["merge_weights", "enable_lora", "rank", "bias_mode", "num_layers", "", "x" * 500, 3])
def test_a_name_that_has_nothing_to_do_with_it_is_not(name):
    assert nearest(name, OURS) == ""


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "None"), (3, "3"), ("x", "'x'"), (True, "True"), (ml.LoraConfig(), "a LoraConfig"), ([1] * 10**6, "a list"),
     (np.zeros(10**6), "an array"), (ml.AdamW(), "an AdamW"), (ml.ModelConfig, "a type")],
)  # fmt: skip
def test_what_was_got_is_said_in_a_word(value, says):
    assert described(value) == says
    with pytest.raises(TypeError, match=rf"^one: got {says}, takes another$"):
        check_kind("one", value, bytes, "another")
