"""The shipped names and base, the tasks made from them, and the command that pretrains."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.data import base as base_module
from minilora.data import pretrain
from minilora.data.names import TABLES, surname_split
from minilora.data.planted import STRENGTH
from minilora.trees import fingerprint, leaves

DATA = Path(str(files("minilora.data")))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=15)


@pytest.fixture(scope="module")
def base():
    return ml.load_base()


def names_of(dataset):
    """The names of a dataset, read from its inputs (after the opening boundary)."""
    return ml.decode(dataset.inputs[:, 1:])


# --- the tables ---


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_what_the_readme_says(table):
    row = re.search(rf"\| {TABLES[table]} \| ([\d,]+) \| `(\w+)` \|", (DATA / "README.md").read_text())
    content = (DATA / TABLES[table]).read_bytes()
    names = ml.load_names(table)
    assert hashlib.sha256(content).hexdigest() == row[2]
    assert len(names) == len(set(names)) == int(row[1].replace(",", ""))
    assert content.decode("ascii") == "".join(f"{name}\n" for name in names)
    assert all(re.fullmatch("[a-z]+", name) for name in names)


def test_the_other_numbers_in_the_readme_hold():
    readme = " ".join((DATA / "README.md").read_text().split())
    surnames, female, male = (ml.load_names(table) for table in ("surnames", "female", "male"))
    assert f"the longest surname has {max(map(len, surnames))} letters" in readme
    assert f"the longest first name {max(map(len, female + male))}" in readme
    assert f"{len(set(surnames[:20_000]) & set(female + male)):,} of the 20,000 most frequent surnames" in readme
    assert f"{len(set(female) & set(male))} first names are in both" in readme


def test_an_unknown_table_is_refused_with_the_nearest_name():
    with pytest.raises(
        ValueError, match=r"table: got 'surname' \(did you mean 'surnames'\?\), takes one of 'surnames'"
    ):
        ml.load_names("surname")


# --- names and tokens ---


@given(names=st.lists(NAMES, min_size=1, max_size=5), spare=st.integers(1, 4))
def test_names_come_back_from_their_tokens(names, spare):
    context = max(map(len, names)) + spare
    dataset = ml.encode(names, context)
    assert dataset.inputs.shape == dataset.targets.shape == (len(names), context)
    assert ml.decode(dataset.inputs[:, 1:]) == names
    assert ml.decode(np.maximum(dataset.targets, 0)) == names


def test_a_name_ends_at_its_first_boundary():
    """Letters after it belong to nothing."""
    assert ml.decode(np.array([[1, 2, 0, 3], [0, 1, 1, 1], [26, 25, 24, 23]])) == ["ab", "", "zyxw"]


@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_the_target_is_the_next_token_up_to_the_closing_boundary(names):
    inputs, targets = ml.encode(names)
    assert (inputs[:, 0] == 0).all()
    for name, row, target in zip(names, inputs, targets, strict=True):
        n = len(name) + 1  # each letter, and the boundary
        letters = [ord(letter) - 96 for letter in name]
        assert list(row) == [0, *letters, *[0] * (16 - n)]
        assert list(target) == [*letters, 0, *[-1] * (16 - n)]


@pytest.mark.parametrize(
    "bad", ["", "Anna", "mary ann", "o'neil", "josé", "x1", "a\n", " ", "ß", "a" * 16, None, 5, b"a"]
)
def test_a_bad_name_is_named(bad):
    with pytest.raises(ValueError, match=f"^names: got {re.escape(repr(bad))}, takes"):
        ml.encode(["anna", bad])


def test_one_string_is_not_taken_for_names_of_one_letter():
    with pytest.raises(ValueError, match="names: got 'anna'"):
        ml.encode("anna")


def test_names_may_come_from_a_generator():
    one, other = ml.encode(name for name in ("anna", "eve")), ml.encode(["anna", "eve"])
    assert np.array_equal(one.inputs, other.inputs)
    assert np.array_equal(one.targets, other.targets)


@pytest.mark.parametrize("bad", [None, 5, 1.5])
def test_what_holds_no_names_is_named(bad):
    with pytest.raises(TypeError, match=rf"^names: got {bad!r}, takes a list of names"):
        ml.encode(bad)


@pytest.mark.parametrize("bad", [0, -1, 4.0, "4", None, True])
def test_a_bad_context_length_is_named(bad):
    with pytest.raises(ValueError, match=r"^context_length: got .*, takes an integer of at least 1"):
        ml.encode(["a"], bad)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([[1, 27]], "tokens: got 1 ... 27, takes 0 ... 26"),
        ([[1, -1]], "tokens: got -1 ... 1, takes 0 ... 26"),
        ([1, 2], "tokens: got int64 of shape (2,), takes integers (names, tokens)"),
        ([[1.0]], "tokens: got float64 of shape (1, 1), takes integers"),
    ],
)
def test_tokens_that_are_no_letters_are_refused(tokens, says):
    """-1 is where a target has nothing to predict; 27 would come out as an open brace."""
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        ml.decode(np.array(tokens))


@pytest.mark.parametrize("bad", [None, 3, ["female"], {"female": 1}])
def test_what_is_no_table_is_named(bad):
    with pytest.raises(ValueError, match=r"^table: got .*, takes one of 'surnames', 'female', 'male'$"):
        ml.load_names(bad)


def test_numpy_numbers_are_numbers():
    one, other = ml.names_task("female", np.int64(5), np.uint8(3)), ml.names_task("female", 5, 3)
    assert np.array_equal(one[0].inputs, other[0].inputs)


@pytest.mark.parametrize("seed", [-1, None, True, 1.0, "0", np.random.default_rng(0)])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match=r"^seed: got .*, takes an integer of at least 0"):
        ml.names_task("female", 5, seed)


def test_a_name_must_leave_room_for_its_end():
    assert ml.encode(["abc"], context_length=4).targets.tolist() == [[1, 2, 3, 0]]
    with pytest.raises(ValueError, match=r"names: got 'abcd', takes at most 3 letters"):
        ml.encode(["abcd"], context_length=4)


# --- the names task ---


@pytest.mark.parametrize(("table", "n_all", "n_held_out"), [("female", 4275, 1500), ("male", 1219, 609)])
@pytest.mark.parametrize("n_train", [1, 200, None])
def test_training_and_validation_names_are_disjoint(table, n_all, n_held_out, n_train):
    train, validation = (names_of(dataset) for dataset in ml.names_task(table, n_train, seed=3))
    assert len(train) == (n_all - n_held_out if n_train is None else n_train)
    assert len(validation) == n_held_out
    assert len({*train, *validation}) == len(train) + len(validation)
    assert {*train, *validation} <= set(ml.load_names(table))


def test_runs_with_the_same_seed_are_paired():
    """The same held-out names whatever n_train is, and the smaller training set is part of the larger."""
    few, many, other = (ml.names_task("female", n, seed) for n, seed in ((50, 0), (300, 0), (50, 1)))
    assert np.array_equal(few[1].inputs, many[1].inputs)
    assert np.array_equal(few[0].inputs, many[0].inputs[:50])
    assert not np.array_equal(few[1].inputs, other[1].inputs)
    assert not np.array_equal(few[0].inputs, other[0].inputs)


def test_the_names_drawn_are_not_the_most_frequent_ones():
    """The tables are sorted by frequency: taken in that order, training and validation would differ in kind."""
    place = {name: i for i, name in enumerate(ml.load_names("female"))}
    means = [np.mean([place[name] for name in names_of(dataset)]) for dataset in ml.names_task("female", 1000, 0)]
    assert means == pytest.approx([4275 / 2] * 2, rel=0.06)  # the standard error is under 2 %


@pytest.mark.parametrize("n_train", [0, -1, 2776, 1.5, "all", True])
def test_a_bad_number_of_training_names_is_refused(n_train):
    with pytest.raises(ValueError, match=f"^n_train: got {n_train!r}, takes"):
        ml.names_task("female", n_train, seed=0)


def test_adaptation_to_the_pretraining_names_is_refused():
    with pytest.raises(ValueError, match="table: got 'surnames', takes one of 'female', 'male'"):
        ml.names_task("surnames", 10, seed=0)


def test_pretraining_sees_no_first_name():
    train, validation = (set(names_of(dataset)) for dataset in surname_split())
    first_names = {*ml.load_names("female"), *ml.load_names("male")}
    assert len(validation) == 2000
    assert not train & validation
    assert not (train | validation) & first_names
    assert train | validation | first_names >= set(ml.load_names("surnames"))


# --- the planted task ---


@pytest.fixture(scope="module")
def planted(base):
    return ml.planted_task(base, k=3, n_train=400, seed=5)


@pytest.mark.parametrize(("k", "targets"), [(1, ("q_proj", "v_proj")), (3, ("o_proj",)), (5, ("up_proj", "down_proj"))])
def test_the_teacher_differs_by_rank_k_in_the_targets_and_nowhere_else(base, k, targets):
    """And each singular value of the change is twice the weight's largest."""
    before = leaves(base.params)
    teacher = ml.planted_task(base, k, n_train=1, seed=0, targets=targets).teacher
    after = leaves(teacher.params)
    chosen = {f"layers.{i}.{name}.weight" for i in range(2) for name in targets}
    assert {path for path in before if after[path].tobytes() != before[path].tobytes()} == chosen
    assert after.keys() == before.keys()
    assert {array.dtype for array in after.values()} == {np.dtype("float32")}
    assert teacher.config == base.config
    for path in chosen:
        change = after[path].astype("float64") - before[path]
        values = np.linalg.svd(change, compute_uv=False)
        norm = np.linalg.norm(before[path].astype("float64"), 2)
        np.testing.assert_allclose(values[:k], STRENGTH * norm, rtol=1e-5)
        assert values[k] < 1e-5 * norm
    assert STRENGTH == 2


def test_planting_leaves_the_base_as_it_was(base):
    before = fingerprint(base.params)
    ml.planted_task(base, k=2, n_train=5, seed=0)
    assert fingerprint(base.params) == before


def teacher_probabilities(task, inputs):
    logits = ml.forward(task.teacher.params, inputs, task.teacher.config).astype("float64")
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_validation_targets_are_the_teacher_s_distributions(planted):
    inputs, targets = planted.validation
    real = ml.names_task("female", 400, seed=5)[1]
    counted = real.targets >= 0
    assert np.array_equal(inputs, real.inputs)
    np.testing.assert_allclose(targets[counted].sum(-1), 1, rtol=1e-5)
    assert (targets[counted] > 0).all()
    assert not targets[~counted].any()
    np.testing.assert_allclose(targets[counted], teacher_probabilities(planted, inputs)[counted], rtol=1e-4)


def test_training_labels_are_drawn_from_the_teacher(planted):
    """How often each letter is drawn, against the sum of its probabilities: 27 counts, within five deviations."""
    inputs, targets = planted.train
    real = ml.names_task("female", 400, seed=5)[0]
    counted = real.targets >= 0
    assert np.array_equal(inputs, real.inputs)
    assert np.array_equal(targets >= 0, counted)
    p = teacher_probabilities(planted, inputs)[counted]  # (tokens, 27)
    drawn = np.bincount(targets[counted], minlength=27)
    deviation = np.sqrt((p * (1 - p)).sum(0))
    assert (np.abs(drawn - p.sum(0)) < 5 * deviation).all()
    # Token by token too: the labels' mean log-probability is minus the entropy, not higher (the likeliest letter).
    log_p = np.log(np.take_along_axis(p, targets[counted][:, None], -1))
    entropy = -(p * np.log(p)).sum(-1)
    spread = np.sqrt((p * (np.log(p) + entropy[:, None]) ** 2).sum(-1).mean() / len(p))
    assert abs(-log_p.mean() - entropy.mean()) < 5 * spread


def test_the_floor_is_the_teacher_s_loss_and_no_student_is_below(base, planted):
    inputs, targets = planted.validation
    assert planted.floor == ml.evaluate(planted.teacher, planted.validation)
    p = targets[targets.any(-1)].astype("float64")
    assert planted.floor == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-5)
    assert ml.evaluate(base, planted.validation) > planted.floor + 0.1
    settings = ml.TrainConfig(steps=60, learning_rate=1e-2, evaluate_every=20, evaluation_size=200)
    lora = ml.LoraConfig(r=3, lora_alpha=6)
    history = ml.fit(base, lora, planted.train, planted.validation, settings, seed=0, progress=False)
    floor = ml.evaluate(planted.teacher, ml.Dataset(inputs[:200], targets[:200]))
    assert all(loss > floor for loss in history.validation_loss)
    assert history.best_loss < history.validation_loss[0] - 0.05  # and it can be approached


def test_the_planted_task_is_fixed_by_its_seed(base):
    one, same, other = (ml.planted_task(base, 2, 20, seed) for seed in (0, 0, 1))
    assert one.floor == same.floor != other.floor
    assert np.array_equal(one.train.targets, same.train.targets)
    assert fingerprint(one.teacher.params) == fingerprint(same.teacher.params) != fingerprint(other.teacher.params)


@pytest.mark.parametrize("k", [0, -1, 33, 1.5, "2"])
def test_a_rank_that_cannot_be_planted_is_refused(base, k):
    """The projections are 32 by 32: a change of rank 33 does not exist, and less would be planted without a word."""
    with pytest.raises(ValueError, match=f"^k: got {k!r}, takes"):
        ml.planted_task(base, k, 10, seed=0)


def test_a_target_that_is_not_there_is_refused(base):
    with pytest.raises(ValueError, match=r"^targets: 'qproj' matches no module"):
        ml.planted_task(base, 2, 10, seed=0, targets=["qproj"])
    with pytest.raises(ValueError, match=r"^targets: got \[\], takes a list"):
        ml.planted_task(base, 2, 10, seed=0, targets=[])


def test_a_base_of_something_else_than_letters_is_refused(base):
    config = ml.ModelConfig(vocab_size=40)
    other = ml.Model(config, ml.init_params(config, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"^base: got vocab_size = 40, takes 27"):
        ml.planted_task(other, 2, 10, seed=0)
    with pytest.raises(TypeError, match=r"^base: got a dict, takes a Model"):
        ml.planted_task(base.params, 2, 10, seed=0)


# --- the shipped base ---


@pytest.mark.parametrize(("name", "options"), [("surnames", ""), ("surnames_4_layers", " --layers 4")])
def test_a_shipped_base_is_what_its_config_says(name, options):
    base = ml.load_base(name)
    stated = json.loads((DATA / "bases" / name / "config.json").read_text())
    assert fingerprint(base.params) == stated["fingerprint"]
    assert vars(base.config).items() <= stated.items()
    assert list(leaves(base.params)) == list(leaves(ml.init_params(base.config, np.random.default_rng(0))))
    assert ml.evaluate(base, surname_split()[1]) == pytest.approx(stated["validation_loss"], rel=1e-5)
    assert stated["made_by"] == "python -m minilora.data.pretrain --seed 0 --steps 12000" + options


def test_the_deeper_base_has_four_layers():
    assert [ml.load_base(name).config.n_layers for name in base_module.BASES] == [2, 4]


def test_every_call_gives_a_base_of_its_own(base):
    one = ml.load_base("surnames")
    one.params["norm"]["bias"] += 1
    assert fingerprint(ml.load_base("surnames").params) == fingerprint(base.params)


@pytest.mark.parametrize("bad", [None, Path("surnames"), ["surnames"], 3])
def test_what_is_no_name_of_a_base_is_named(bad):
    with pytest.raises(ValueError, match=r"^name: got .*takes one of 'surnames', 'surnames_4_layers'$"):
        ml.load_base(bad)


def test_an_unknown_base_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"name: got 'surname' \(did you mean 'surnames'\?\), takes one of 'surnames'"):
        ml.load_base("surname")


def test_a_damaged_base_is_refused(tmp_path, monkeypatch):
    """One changed bit in one weight."""
    shutil.copytree(DATA / "bases", tmp_path / "bases")
    monkeypatch.setattr(base_module, "files", lambda package: tmp_path)
    ml.load_base("surnames")
    weights = tmp_path / "bases" / "surnames" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        ml.load_base("surnames")


# --- the command that pretrains ---


def run_pretrain(*arguments):
    command = [sys.executable, "-m", "minilora.data.pretrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_pretraining_makes_a_better_model_and_the_same_one_again(tmp_path):
    done = [run_pretrain("--out", tmp_path / name, "--steps", 20, "--seed", 4) for name in ("one", "same")]
    assert [(run.returncode, run.stderr) for run in done] == [(0, "")] * 2
    one, same = (ml.load_model(tmp_path / name) for name in ("one", "same"))
    assert fingerprint(one.params) == fingerprint(same.params)
    stated = json.loads((tmp_path / "one" / "config.json").read_text())
    validation = surname_split()[1]
    start = ml.Model(one.config, ml.init_params(one.config, np.random.default_rng(4)))
    assert stated["validation_loss"] == ml.evaluate(one, validation) < ml.evaluate(start, validation) - 0.1
    assert stated["made_by"] == "python -m minilora.data.pretrain --seed 4 --steps 20"
    assert f"{stated['validation_loss']:.4f}" in done[0].stdout
    assert stated["fingerprint"][:12] in done[0].stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--steps", 0], "--steps: got '0'"),
        (["--steps", 1, "--seed", -1], "--seed: got '-1'"),
        (["--steps", 1, "--layers", 0], "--layers: got '0'"),
        (["--steps", 1, "--out", "file/folder"], "file"),
    ],
)
def test_bad_arguments_give_one_line_and_no_traceback(tmp_path, arguments, named):
    (tmp_path / "file").write_text("a file, so no folder can be in it")
    arguments = [tmp_path / one if one == "file/folder" else one for one in arguments]
    run = run_pretrain("--out", tmp_path / "out", *arguments)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ")
    assert named in run.stderr
    assert run.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_training(tmp_path, monkeypatch):
    """The full run takes minutes; its result must not be lost over a folder name."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pretrain, "pretrain", lambda *arguments: pytest.fail("trained first"))
    assert pretrain.main(["--out", str(tmp_path / "file" / "folder"), "--steps", "1"]) != 0


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--steps", "many"], ["--out", "x", "--step-size", "1"]])
def test_bad_usage_is_exit_status_two(arguments):
    run = run_pretrain(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
