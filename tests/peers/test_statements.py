"""What the kit's page and comments say of PEFT, loralib and PyTorch, as these libraries do it."""

import math
import warnings

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
loralib = pytest.importorskip("loralib")

from torch import nn  # noqa: E402

from minilora.conformance import vectors  # noqa: E402
from minilora.conformance.peers.peft import Peft, Whole  # noqa: E402

PROBLEM = vectors.load("all_modules").problem


def adapted(**config):
    """PEFT on the twin; the layers in which it put factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(Whole(PROBLEM), peft.LoraConfig(target_modules=["q_proj"], **config))
    return made, sorted({name.split("layers.")[1][0] for name, _ in made.named_parameters() if ".lora_A" in name})


def test_adamw_without_eps_makes_nan_of_a_gradient_of_zero():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([0.0, 1.0])
    torch.optim.AdamW([parameter], lr=0.1, eps=0).step()
    assert parameter.isnan().tolist() == [True, False]


def test_a_square_root_in_float32_loses_the_eighth_digit():
    found = (torch.tensor(2.0).sqrt() ** 2).item()
    assert 1e-8 < abs(found - 2) < 1e-6


def test_defaults_are_as_in_the_table():
    config, layer = peft.LoraConfig(), loralib.Linear(4, 4)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 8, 0)
    assert (layer.r, layer.lora_alpha) == (0, 1)


def test_kaiming_uniform_takes_the_second_axis_for_fan_in():
    r, n_in = 8, 4096
    for shape, bound in [((r, n_in), 1 / math.sqrt(n_in)), ((n_in, r), 1 / math.sqrt(r))]:
        drawn = nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))
        assert drawn.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_no_layers_are_no_filter_in_peft_and_negative_ones_are_not_there():
    assert adapted(layers_to_transform=[])[1] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="not found"):
        adapted(layers_to_transform=[-1])


def test_peft_warns_where_trained_biases_stay_when_the_adapter_is_off():
    made, _ = adapted(bias="all")
    with pytest.warns(UserWarning, match="bias"):
        made.base_model.disable_adapter_layers()


def test_peft_looks_for_layers_below_a_part():
    with pytest.raises(ValueError, match="not found"):
        peft.get_peft_model(
            Whole(PROBLEM).model,
            peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern=None),
        )


def test_linear_combinations_of_peft_have_cross_terms_and_cat_has_none():
    made = Peft().build(PROBLEM)
    made.add_adapter("other", made.peft_config["default"])
    for name, parameter in made.named_parameters():
        if ".other." in name:
            nn.init.normal_(parameter)
    layer = next(one for one in made.modules() if isinstance(one, peft.tuners.lora.LoraLayer))
    expected = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    for kind, same in (("cat", True), ("linear", False)):
        made.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], kind, combination_type=kind)
        assert torch.allclose(layer.get_delta_weight(kind), expected, atol=1e-5) == same


def test_all_biases_of_loralib_are_those_with_bias_in_their_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = loralib.Linear(2, 2, r=1)
            self.bias_of_mine = nn.Parameter(torch.zeros(1))

    made = Odd()
    loralib.mark_only_lora_as_trainable(made, "all")
    trains = {name for name, one in made.named_parameters() if one.requires_grad}
    assert trains == {"linear.lora_A", "linear.lora_B", "linear.bias", "bias_of_mine"}
