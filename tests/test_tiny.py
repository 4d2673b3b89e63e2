"""Read this file first: everything that minilora promises, from top to bottom, each in a test of a few lines.

It needs nothing from the other tests, uses every public name, and takes under five seconds on one core:

    python -m pytest tests/test_tiny.py

What is checked here once is checked in depth in the file named after its module: tests/test_lora.py and so on.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minilora as ml
from minilora import conformance
from minilora.trees import fingerprint, leaves, nested

BASE = ml.load_base("surnames")  # 27,000 parameters, pretrained on surnames
TRAIN, VALIDATION = ml.names_task("female", n_train=200, seed=0)  # the task: first names
LORA = ml.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj", "v_proj"])
FAST = ml.TrainConfig(steps=20, batch_size=16, learning_rate=1e-2, evaluate_every=10, evaluation_size=200)


def trained() -> ml.Adapter:
    """An adapter whose factors are nowhere zero, as after training."""
    rng = np.random.default_rng(1)
    fresh = ml.init_adapter(BASE.params, LORA, rng)
    arrays = {name: rng.standard_normal(one.shape).astype(one.dtype) / 4 for name, one in fresh.arrays().items()}
    return fresh.with_arrays(arrays)


def logits(params=BASE.params, **how):
    """Of eight names, by the base or what is given in its place."""
    return ml.forward(params, TRAIN.inputs[:8], BASE.config, **how)


# --- the model and its data ---


def test_names_become_tokens_and_tokens_names():
    """a to z are 1 to 26, 0 is the boundary at both ends, -1 is nothing to predict."""
    data = ml.encode(["ann"], context_length=6)
    assert data.inputs.tolist() == [[0, 1, 14, 14, 0, 0]]
    assert data.targets.tolist() == [[1, 14, 14, 0, -1, -1]]
    assert ml.decode(data.targets.clip(0)) == ["ann"]
    assert {*ml.decode(TRAIN.targets.clip(0))} < {*ml.load_names("female")}
    assert isinstance(TRAIN, ml.Dataset)


def test_a_model_is_a_config_and_nested_dicts_of_arrays():
    """Paths mirror the code, linear weights are (out, in), and nothing is random but by a generator that is passed."""
    config = ml.ModelConfig(d_model=8, n_heads=2, n_layers=1, d_ff=12)
    one, other = (ml.init_params(config, np.random.default_rng(0)) for _ in range(2))
    assert one["layers"][0]["up_proj"]["weight"].shape == (12, 8)
    assert fingerprint(one) == fingerprint(other)


def test_a_letter_is_predicted_from_those_before_it():
    """Logits are (names, tokens, symbols), and none depends on a later token."""
    changed = TRAIN.inputs[:8].copy()
    changed[:, 5:] = 26
    assert logits().shape == (8, 16, 27)
    assert np.allclose(ml.forward(BASE.params, changed, BASE.config)[:, :5], logits()[:, :5], atol=1e-5)


def test_the_base_knows_surnames_and_writes_some():
    """Its loss on first names is far below knowing nothing, ln 27, and the same seed writes the same names."""
    assert ml.evaluate(BASE, VALIDATION) < np.log(27) - 0.9
    one, other = (ml.sample_names(BASE, 4, np.random.default_rng(0)) for _ in range(2))
    assert one == other
    assert all(name.isalpha() for name in one)


# --- LoRA ---


def test_an_adapter_starts_exactly_at_the_base():
    """B is zero, so that the first logits are those of the base, to the bit, and training moves away from them."""
    fresh = ml.init_adapter(BASE.params, LORA, np.random.default_rng(0))
    assert np.array_equal(logits(adapter=fresh), logits())
    assert not np.allclose(logits(adapter=trained()), logits(), atol=0.1)


def test_parameters_are_counted_in_closed_form():
    """r (in + out) a module: here two modules of 32 x 32 in each of two layers."""
    assert ml.select_modules(BASE.params, LORA) == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")
    ]
    count = ml.count_parameters(BASE.params, LORA)
    assert isinstance(count, ml.ParameterCount)
    assert count.trainable == 4 * (32 + 32) * 2 * 2 == sum(array.size for array in trained().arrays().values())


def test_a_module_that_does_not_exist_is_an_error_that_names_those_that_do():
    with pytest.raises(ValueError, match=r"'query' matches no module; there are layers\.0\.q_proj"):
        ml.select_modules(BASE.params, ml.LoraConfig(target_modules=["q_proj", "query"]))


def test_dropout_acts_in_training_alone():
    """Training is where a generator is passed. Evaluation has none, and is the same every time."""
    adapter, rng = trained(), np.random.default_rng(0)
    assert not np.allclose(logits(adapter=adapter, rng=rng), logits(adapter=adapter, rng=rng), atol=0.01)
    assert np.array_equal(logits(adapter=adapter), logits(adapter=adapter))


def test_merged_is_unmerged_and_the_base_is_not_written_to():
    """W + (alpha / r) B A gives the same logits with no adapter beside it, and merging twice is refused."""
    adapter, before = trained(), fingerprint(BASE.params)
    merged = ml.merge(BASE.params, adapter)
    assert np.allclose(logits(merged), logits(adapter=adapter), atol=1e-4)
    assert fingerprint(BASE.params) == before
    factors = adapter.factors["layers.0.q_proj"]
    change = ml.weight_changes(adapter)["layers.0.q_proj"]
    assert np.allclose(change, 8 / 4 * factors["lora_B"] @ factors["lora_A"], atol=1e-5)
    with pytest.raises(ValueError, match="merged"):
        ml.merge(merged, adapter)


# --- training ---


def test_adamw_s_first_step_is_the_learning_rate_and_its_decay_is_decoupled():
    """Against the gradient's sign, whatever its size; and (1 - lr wd) p where there is no gradient."""
    adamw = ml.AdamW(learning_rate=0.1, weight_decay=0.5)
    parameters = np.array([1.0, 1.0, 1.0])
    moved, state = adamw.update(parameters, np.array([1e-3, -1e3, 0.0]), adamw.init(parameters))
    assert np.allclose(moved, [0.95 - 0.1, 0.95 + 0.1, 0.95], atol=1e-5)
    assert isinstance(state, ml.AdamWState)


def test_fit_lowers_the_loss_and_leaves_the_base_alone():
    """Training moves the factors and nothing else; the same seed gives the same run, to the bit."""
    before = fingerprint(BASE.params)
    one, other = (ml.fit(BASE, LORA, TRAIN, VALIDATION, FAST, seed=0, progress=False) for _ in range(2))
    assert isinstance(one, ml.History)
    assert one.steps == (0, 10, 20)
    assert one.train_loss[-1] < one.train_loss[0] - 0.1
    assert one.validation_loss[-1] < one.validation_loss[0] - 0.1
    assert fingerprint(one.final.arrays()) == fingerprint(other.final.arrays())
    assert fingerprint(BASE.params) == before


def test_a_stack_gives_what_fit_gives_for_each_run():
    """Runs on one base train at once, each with its own alpha, dropout and rate; none changes another by a bit."""
    other = replace(LORA, lora_alpha=2, lora_dropout=0), replace(FAST, learning_rate=3e-3)
    runs = [ml.FineTuning(lora, TRAIN, VALIDATION, config, seed=3) for lora, config in ((LORA, FAST), other)]
    for run, found in zip(runs, ml.fit_stack(BASE, runs, progress=False), strict=True):
        alone = ml.fit(BASE, run.lora, TRAIN, VALIDATION, run.config, seed=3, progress=False)
        assert found.validation_loss == alone.validation_loss
        assert fingerprint(found.final.arrays()) == fingerprint(alone.final.arrays())


def test_a_run_that_diverges_says_so():
    """A loss that is not a number ends the run and is never a result; without a LoraConfig, every parameter trains."""
    wild = ml.TrainConfig(steps=2, learning_rate=1e30, evaluate_every=1, evaluation_size=8)
    with pytest.raises(ml.DivergedError, match="a lower learning_rate may help"):
        ml.fit(BASE, None, TRAIN, VALIDATION, wild, seed=0, progress=False)


def test_a_task_can_be_planted_whose_right_rank_is_known():
    """The teacher is the base and a change of rank k; `floor` is the loss below which nothing can fall."""
    task = ml.planted_task(BASE, k=2, n_train=10, seed=0)
    assert isinstance(task, ml.PlantedTask)
    change = task.teacher.params["layers"][1]["q_proj"]["weight"] - BASE.params["layers"][1]["q_proj"]["weight"]
    assert np.linalg.matrix_rank(change, tol=1e-4) == 2
    assert ml.evaluate(BASE, task.validation) > task.floor


# --- files ---


def test_models_and_adapters_come_back_from_their_folders(tmp_path):
    """Models as safetensors, adapters as PEFT's folders: the same numbers, to the bit, and only onto their own base."""
    ml.save_model(BASE, tmp_path / "base")
    ml.save_adapter(trained(), tmp_path / "adapter")
    base = ml.load_model(tmp_path / "base")
    adapter = ml.load_adapter(tmp_path / "adapter", base.params)
    assert np.array_equal(
        ml.forward(base.params, TRAIN.inputs[:8], base.config, adapter=adapter), logits(adapter=trained())
    )
    with pytest.raises(ValueError, match="fingerprint"):
        ml.load_adapter(tmp_path / "adapter", ml.load_base("surnames_4_layers").params)


OPT_NAMES = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj", "up_proj": "fc1", "down_proj": "fc2",
    "input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm",
    "norm": "final_layer_norm", "embed_tokens": "embed_tokens", "embed_positions": "embed_positions",
}  # fmt: skip


def opt_name(path: str) -> str:
    """OPT's name of one of our arrays: layers.0.up_proj.weight is model.decoder.layers.0.fc1.weight."""
    *where, module, kind = path.split(".")
    return ".".join(["model.decoder", *where, OPT_NAMES[module], kind])


def test_opt_and_an_adapter_that_peft_made_for_it_are_read(tmp_path):
    """The architecture is OPT's, so that a real checkpoint can be checked logit by logit."""
    arrays = {opt_name(path): array for path, array in leaves(BASE.params).items()}
    positions = arrays["model.decoder.embed_positions.weight"]
    arrays["model.decoder.embed_positions.weight"] = np.concatenate(
        [positions[:2] + 9, positions]
    )  # OPT skips two rows
    sizes = {"vocab_size": 27, "max_position_embeddings": 16, "hidden_size": 32, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": 2, "ffn_dim": 128, "model_type": "opt"}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft))
    named = {f"base_model.model.{opt_name(path)}.weight": array for path, array in trained().arrays().items()}
    safetensors.numpy.save_file(named, tmp_path / "adapter_model.safetensors")

    opt = ml.load_opt(tmp_path)
    adapter = ml.load_opt_adapter(tmp_path, opt.params)
    assert isinstance(opt, ml.Model)
    assert np.array_equal(
        ml.forward(opt.params, TRAIN.inputs[:8], opt.config, adapter=adapter), logits(adapter=trained())
    )


# --- other people's LoRA, and the commands ---


class Mine(conformance.Implementation):
    """An implementation as its author plugs it into the kit: what it builds, and the logits of that."""

    scale = 1

    def build(self, problem):
        base = ml.Model(ml.ModelConfig(**problem.model), nested(dict(problem.base)))
        adapter = ml.init_adapter(base.params, ml.LoraConfig(**problem.config), np.random.default_rng(0))
        adapter.scaling.update({path: self.scale * one for path, one in adapter.scaling.items()})
        return base, adapter.with_arrays(problem.factors)

    def forward(self, made, tokens, training=False):
        base, adapter = made
        return ml.forward(base.params, tokens, base.config, adapter=adapter)


class Doubled(Mine):
    """The same with a bug: the change counts twice."""

    scale = 2


def test_the_kit_passes_what_is_right_and_fails_what_is_wrong():
    """A check of the kit holds an implementation to published vectors; what one does not offer is said to be so."""
    chosen = [one for one in conformance.CHECKS if one.id in ("logits", "merged-weights")]
    assert [one.status for one in conformance.run(Mine, chosen)] == ["pass", "not offered"]
    assert [one.status for one in conformance.run(Doubled, chosen)] == ["fail", "not offered"]
    with pytest.raises(AssertionError, match="Logits of every vector"):
        conformance.check(chosen[0], Doubled)


@pytest.mark.parametrize(
    ("arguments", "status"), [("minilora.experiments --list", 0), ("minilora.experiments nothing", 2)]
)
def test_a_command_says_by_its_exit_status_how_it_went(arguments, status):
    """0 done, 1 something failed, 2 bad usage; a user's mistake is no traceback."""
    run = subprocess.run([sys.executable, "-m", *arguments.split()], capture_output=True, text=True, timeout=60)
    assert run.returncode == status
    assert "Traceback" not in run.stderr
    assert ("planted_rank" in run.stdout) == (status == 0)


def test_this_file_uses_every_public_name():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in ml.__all__ if f"ml.{name}" not in source] == []
