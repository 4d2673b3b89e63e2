"""What docstrings of the core say of PyTorch, held to PyTorch."""

import numpy as np
import pytest

import minilora as ml
from minilora import ops

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_is_pytorch_s(weight_decay):
    """Decay is multiplied by the learning rate, and eps is outside the bias correction."""
    rng = np.random.default_rng(0)
    settings = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    parameters = rng.standard_normal(11)
    theirs = torch.nn.Parameter(torch.tensor(parameters))
    optimizer = torch.optim.AdamW([theirs], lr=0.05, **settings)
    adamw = ml.AdamW(0.05, **settings)
    state = adamw.init(parameters)
    for _ in range(20):
        gradient = rng.standard_normal(11)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
        parameters, state = adamw.update(parameters, gradient, state)
        np.testing.assert_allclose(parameters, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_the_gradient_of_relu_at_zero_is_pytorch_s():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    torch.relu(x).sum().backward()
    value, gradients = ml.autodiff.value_and_gradients(lambda a: ops.relu(a["x"]).sum(), {"x": np.array([-1.0, 0, 2])})
    assert (float(value), gradients["x"].tolist()) == (2.0, x.grad.tolist())


def test_loralib_s_factors_start_as_ours_do():
    """Uniform in +-1/sqrt(in), and zero: what `init_factors` says of loralib."""
    loralib = pytest.importorskip("loralib")
    torch.manual_seed(0)
    layer = loralib.Linear(400, 50, r=16)
    lora_A, lora_B = layer.lora_A.detach().numpy(), layer.lora_B.detach().numpy()
    ours, zero = ml.lora.init_factors(True, 50, 400, 16, np.random.default_rng(0))
    assert (lora_A.shape, lora_B.shape) == (ours.shape, zero.shape)
    assert np.abs(lora_A).max() == pytest.approx(400**-0.5, rel=0.01) == pytest.approx(np.abs(ours).max(), rel=0.01)
    assert lora_A.std() == pytest.approx(ours.std(), rel=0.05)
    assert not lora_B.any()
    assert not zero.any()
