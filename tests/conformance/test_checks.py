"""Every check passes on minilora and fails on its mutant; what an implementation does costs it one row at most."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from minilora import conformance
from minilora.conformance import CHECKS, Implementation, __main__, running, vectors
from minilora.conformance.checks.subject import Subject
from minilora.conformance.mutants import MUTANTS
from minilora.conformance.mutants.training import _OwnMask
from minilora.conformance.peers.ours import Minilora
from minilora.conformance.running import ERROR, FAIL, NOT_OFFERED, PASS, result

BY_ID = {one.id: one for one in CHECKS}
README = Path(conformance.__file__).parent / "README.md"


class Single(Minilora):
    """minilora in float32."""

    dtype = "float32"


@pytest.mark.parametrize("one", CHECKS, ids=str)
@pytest.mark.parametrize("kind", [Minilora, Single], ids=["float64", "float32"])
def test_minilora_passes(one, kind):
    conformance.check(one, kind)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails_its_check(name):
    found = result(BY_ID[name], MUTANTS[name]())
    assert found.status == FAIL, found
    assert found.detail


def test_every_check_has_a_mutant_a_reason_and_a_source():
    assert MUTANTS.keys() == BY_ID.keys()
    assert len(BY_ID) == len(CHECKS) >= 25
    for one in CHECKS:
        assert one.title
        assert one.source
        assert "\n" not in one.title


def test_every_row_of_the_known_bugs_has_a_check():
    """The public threads that the kit was made from; each is named by the check that catches it."""
    threads = """
        microsoft/LoRA#34 microsoft/LoRA#103 microsoft/LoRA#190 peft#1355 LyCORIS#264 torchtune#1101 peft#3753
        aprender#2170 minLoRA mlx-vlm#845 mlx-examples#982 TensorRT-LLM#1668 peft#3449 peft#1155 diffusers#6087
        litgpt#891 peft#1588 peft#3306 litgpt peft#1959 mlx-examples#1289 peft#2018 TSVLC#5 peft#793 diffusers#2245
        peft#2115 peft#2184 peft#3756 unsloth#5747
    """
    sources = " ".join(one.source for one in CHECKS)
    assert [thread for thread in threads.split() if thread not in sources] == []


# --- implementations that misbehave ---


class Nothing(Implementation):
    """Offers nothing."""


class Raises(Minilora):
    """Raises everywhere."""

    def build(self, problem):
        raise RuntimeError("no luck\nat all")


class Exits(Minilora):
    """Calls sys.exit."""

    def build(self, problem):
        sys.exit(3)


class Hangs(Minilora):
    """Never comes back."""

    def build(self, problem):
        time.sleep(60)


class WrongShape(Minilora):
    """Gives logits of the last token alone."""

    def forward(self, made, tokens, training=False):
        return super().forward(made, tokens, training)[:, -1]


class WrongDtype(Minilora):
    """Gives float16."""

    def forward(self, made, tokens, training=False):
        return super().forward(made, tokens, training).astype("float16")


class NoArray(Minilora):
    """Gives a list."""

    def forward(self, made, tokens, training=False):
        return super().forward(made, tokens, training).tolist()


class WrongFactors(Minilora):
    """Gives factors of another shape."""

    def gradients(self, made, tokens, targets):
        return {name: one.T for name, one in super().gradients(made, tokens, targets).items()}


class NaNs(Minilora):
    """Gives NaN."""

    def forward(self, made, tokens, training=False):
        return super().forward(made, tokens, training) * np.nan


@pytest.mark.parametrize(
    ("kind", "check", "status", "detail"),
    [
        (Nothing, "logits", NOT_OFFERED, ""),
        (Raises, "logits", ERROR, "RuntimeError: no luck"),
        (Exits, "logits", ERROR, "SystemExit: 3"),
        (
            WrongShape,
            "logits",
            ERROR,
            "WrongOutputError: forward: got float64 of shape (3, 13), takes float64 of shape (3, 7, 13)",
        ),
        (WrongDtype, "logits", ERROR, "WrongOutputError: forward: got float16 of shape (3, 7, 13), takes"),
        (NoArray, "logits", ERROR, "WrongOutputError: forward: got list, takes"),
        (
            WrongFactors,
            "gradients",
            ERROR,
            "WrongOutputError: gradients: layers.0.q_proj.lora_A: got shape (6, 2), takes (2, 6)",
        ),
        (NaNs, "logits", FAIL, "vector scale_of_1: logits: off by nan"),
    ],
)
def test_what_goes_wrong_is_one_clear_row(kind, check, status, detail):
    found = result(BY_ID[check], kind())
    assert found.status == status
    assert found.detail.startswith(detail)
    assert "\n" not in found.detail


def test_a_check_that_hangs_is_left_behind_and_the_rest_still_runs():
    class HangsOnce(Minilora):
        def merge(self, made):
            time.sleep(60)

    begin = time.monotonic()
    found = conformance.run(HangsOnce, [BY_ID["logits"], BY_ID["merging-happens"], BY_ID["gradients"]], seconds=2.0)
    assert [one.status for one in found] == [PASS, ERROR, PASS]
    assert found[1].detail == "still running after 2 s"
    assert time.monotonic() - begin < 30


def test_nothing_offered_is_nothing_passed():
    assert {one.status for one in conformance.run(Nothing)} == {NOT_OFFERED}


def test_a_damaged_vector_costs_its_rows(monkeypatch):
    def damaged(name):
        raise ValueError(f"{name}.json: sha256: not the file that it was written with")

    monkeypatch.setattr(vectors, "load", damaged)
    found = conformance.run(Minilora)
    assert {one.status for one in found} == {ERROR}
    assert all("sha256" in one.detail for one in found)


def test_who_raises_always_passes_nothing():
    """Also not the checks that ask for a refusal."""
    assert {one.status for one in conformance.run(Raises)} == {ERROR}


def test_a_check_in_another_suite_passes_fails_or_is_skipped():
    conformance.check(BY_ID["logits"], Minilora)
    with pytest.raises(AssertionError, match=r"Logits of every vector.*: fail: vector scale_of_1: logits: off by"):
        conformance.check(BY_ID["logits"], MUTANTS["logits"])
    with pytest.raises(pytest.skip.Exception, match="not offered"):
        conformance.check(BY_ID["logits"], Nothing)


def test_the_three_lines_work_in_a_suite_of_somebody_elses(tmp_path):
    (lines,) = re.findall(r"    (@pytest.*?)\n\n", conformance.__doc__ + "\n\n", re.DOTALL)
    (tmp_path / "test_mine.py").write_text(
        "import pytest\nfrom minilora import conformance\n"
        "from minilora.conformance.peers.ours import Minilora as MyImplementation\n\n"
        + "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    )
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
                          capture_output=True, text=True, cwd=tmp_path, env=os.environ)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CHECKS)} passed" in done.stdout


def test_a_subject_gives_problems_in_its_dtype():
    subject = Subject(Single())
    problem = subject.problem(r=3)
    assert {one.dtype.name for one in problem.base.values()} == {"float32"}
    assert problem.model["dtype"] == "float32"
    assert subject.forward(subject.build(problem)).dtype == np.float32


# --- the command ---


def test_the_command_prints_a_row_a_check(capsys):
    assert __main__.main([]) == 0
    shown = capsys.readouterr().out
    assert all(one.id in shown and one.title in shown for one in CHECKS)
    assert f"{len(CHECKS)} pass" in shown


def test_the_list_says_where_each_bug_was_seen(capsys):
    assert __main__.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.id for one in CHECKS]
    assert all(one.source in line for one, line in zip(CHECKS, lines, strict=True))


def test_a_failure_is_shown_with_its_source_and_is_exit_status_1(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "load_peer", lambda name: MUTANTS["logits"]())
    assert __main__.main(["--json", str(tmp_path / "table.json")]) == 1
    assert "FAIL  logits" in capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert table.keys() == {"peer", "version", "checks"}
    assert table["checks"][0].keys() == {"id", "title", "status", "detail", "source"}
    assert table["checks"][0]["status"] == "fail"
    assert len(table["checks"]) == len(CHECKS)


def test_what_is_not_offered_is_not_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(__main__, "load_peer", lambda name: Nothing())
    assert __main__.main([]) == 0
    assert f"{len(CHECKS)} not offered" in capsys.readouterr().out


@pytest.mark.parametrize("peer", ["peft", "loralib"])
def test_a_peer_that_is_not_installed_is_a_line(peer, capsys, monkeypatch):
    for module in ("torch", f"minilora.conformance.{peer}_peer"):
        monkeypatch.setitem(sys.modules, module, None)
    assert __main__.main(["--peer", peer]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --peer {peer} needs ")
    assert 'in a clone of minilora, pip install torch==2.13.0 && pip install -e ".[peers]"' in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--peer", "torchtune"], ["--json"], ["--pear", "peft"]], ids=str)
def test_bad_usage_is_2(arguments, capsys):
    assert __main__.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_known_before_the_checks(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(running, "result", lambda *arguments: pytest.fail("ran first"))
    assert __main__.main(["--json", str(tmp_path / "file" / "table.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            OSError("libtorch.so: cannot open shared object file"),
            "OSError: libtorch.so: cannot open shared object file",
        ),
        (ImportError("cannot import name 'LoraConfig' from 'peft'", name="peft"), "ImportError: cannot import name"),
    ],
    ids=["a library that does not load", "another version"],
)
def test_a_peer_that_is_there_and_broken_is_not_said_to_be_missing(raised, says, capsys, monkeypatch):
    def broken(module):
        raise raised

    monkeypatch.setattr(__main__.importlib, "import_module", broken)
    assert __main__.main(["--peer", "peft"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --peer peft: cannot be loaded: {says}")
    assert "pip install" not in error


def test_ctrl_c_is_a_line(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "show", interrupted)
    assert __main__.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_table_that_cannot_be_written_at_the_end_is_named(tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilora.command_line.replace_file", full)
    monkeypatch.setattr(__main__, "CHECKS", CHECKS[:1])
    assert __main__.main(["--json", str(tmp_path / "table.json")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'table.json'}: No space left on device\n"


# --- arguments ---


class Half(Minilora):
    """minilora in a precision without a tolerance."""

    dtype = "float16"


class Unnamed(Minilora):
    """A version that is no text."""

    version = 2


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((None,), TypeError, "implementation: got None, takes an Implementation, or its class"),
        ((dict,), TypeError, r"implementation: got \{\}, takes an Implementation"),
        ((Unnamed,), TypeError, "implementation: version: got 2, takes a text"),
        ((Half,), ValueError, "implementation: dtype: got 'float16', takes one of 'float64', 'float32'"),
        ((Minilora, "logits"), TypeError, "checks: got 'logits', takes Checks"),
        ((Minilora, ["logits"]), TypeError, r"checks: got \['logits'\], takes Checks"),
        ((Minilora, CHECKS[0]), TypeError, "checks: got Check.*, takes Checks"),
        ((Minilora, []), TypeError, r"checks: got \[\], takes Checks, at least one"),
        ((Minilora, CHECKS[:1], 0), ValueError, "seconds: got 0, takes a number above 0"),
        ((Minilora, CHECKS[:1], float("inf")), ValueError, "seconds: got inf"),
        ((Minilora, CHECKS[:1], 1e300), ValueError, r"seconds: got 1e\+300"),
        ((Minilora, CHECKS[:1], "3"), ValueError, "seconds: got '3'"),
        ((Minilora, CHECKS[:1], True), ValueError, "seconds: got True"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_arguments_of_another_kind_are_refused_by_name_before_any_check(arguments, error, says, monkeypatch):
    monkeypatch.setattr(running, "_outcome", lambda *arguments: pytest.fail("ran first"))
    with pytest.raises(error, match=says):
        conformance.run(*arguments)


def test_one_check_takes_what_many_take():
    for given in (Minilora, Minilora(), lambda: Minilora()):
        assert result(BY_ID["logits"], given).status == PASS
        conformance.check(BY_ID["logits"], given)
        assert conformance.run(given, (one for one in CHECKS[:1]))[0].status == PASS
    for call in (result, conformance.check):
        with pytest.raises(TypeError, match="checks: got"):
            call("logits", Minilora)
        with pytest.raises(TypeError, match="implementation: got 3"):
            call(BY_ID["logits"], 3)


def test_results_are_plain():
    found = result(BY_ID["logits"], Minilora())
    assert all(isinstance(value, str) for value in dataclasses.asdict(found).values())


# --- wrong and right implementations beside the mutants ---


def _with_masks(change):
    """minilora with dropout masks made otherwise: change(mask, rng)."""

    class Masks(_OwnMask):
        rng = np.random.default_rng(0)

        def _mask(self, mask):
            return change(mask, self.rng).astype(mask.dtype)

    return Masks


WRONG_DROPOUT = {
    "kept with probability p, divided by 1 - p": lambda mask, rng: (rng.random(mask.shape) < 0.2) / 0.8,
    "divided by p": lambda mask, rng: (mask > 0) / 0.2,
    "p is always one half": lambda mask, rng: (rng.random(mask.shape) < 0.5) / 0.5,
    "one mask for the batch": lambda mask, rng: np.tile(mask[: len(mask) // 2], (2, 1))
    if len(mask) % 2 == 0  # (B T, d): two sequences, else three
    else np.tile(mask[: len(mask) // 3], (3, 1)),
    "all inputs of a token or none": lambda mask, rng: np.broadcast_to(mask[..., :1], mask.shape),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_DROPOUT)
def test_each_wrong_dropout_fails_a_check(wrong):
    names = ("dropout-keeps-the-mean", "inputs-are-dropped-at-their-rate", "tokens-have-masks-of-their-own")
    statuses = [result(BY_ID[name], _with_masks(WRONG_DROPOUT[wrong])()).status for name in names]
    assert FAIL in statuses


def test_files_whose_keys_look_otherwise_are_no_failure():
    """As kohya-style files have them: no "layers.1" in them."""

    class Underscores(Minilora):
        def save(self, made, folder):
            arrays = {name.replace(".", "_"): one for name, one in made.adapter.arrays().items()}
            safetensors.numpy.save_file(arrays, folder / "lora.safetensors")

        def load(self, problem, folder):
            names = {name.replace(".", "_"): name for name in problem.factors}
            found = safetensors.numpy.load_file(folder / "lora.safetensors")
            return self.build(dataclasses.replace(problem, factors={names[key]: one for key, one in found.items()}))

    assert result(BY_ID["wrong-keys-are-refused"], Underscores()).status == PASS


def test_a_folder_for_json_is_bad_usage(tmp_path, capsys):
    assert __main__.main(["--json", str(tmp_path)]) == 2
    assert "is a folder, takes a file" in capsys.readouterr().err
