"""The package as a whole: what importing it costs, its public names, what its sources may not do, who imports whom."""

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import minilora as ml

PACKAGE = Path(ml.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {source: ast.parse(source.read_text(encoding="utf-8")) for source in SOURCES}


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


# --- this suite ---


def test_what_the_suite_spreads_by_name_is_there(pytestconfig):
    """A test that was renamed would no longer be done alone, or begun first."""
    spread = next(one for one in pytestconfig.pluginmanager.get_plugins()
                  if getattr(one, "__file__", None) == str(PACKAGE.parent / "conftest.py"))  # fmt: skip
    texts = {path: path.read_text(encoding="utf-8") for path in (PACKAGE.parent / "tests").rglob("test_*.py")}
    names = [
        f"{path.name}::{name}[" for path, text in texts.items() for name in re.findall(r"^def (test_\w+)", text, re.M)
    ]
    for pattern in [
        *spread.ALONE.split("|"),
        *(one.partition(r"\[(")[0].partition(".*-search")[0] for one in spread.LONG),
    ]:
        assert any(re.search(pattern, name) for name in names), pattern
    assert spread.group("tests/experiments/test_faults.py::test_x[1]") == "alone"
    assert spread.place("test_tutorials.py::test_a_chapter_runs_and_prints_what_it_says[06_rank]") == 0


# --- importing ---

HEAVY = ("matplotlib", "scipy", "joblib", "pandas", "torch", "dask", "optuna", "peft", "minilora.experiments")


def test_importing_minilora_does_not_import_what_only_experiments_need():
    """The core is imported by every worker and every command; these would be most of its start-up."""
    code = f"import sys, minilora; print([name for name in {HEAVY} if name in sys.modules])"
    run = run_python(code)
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_importing_minilora_prints_nothing_and_leaves_numpy_alone():
    """Neither the global generator nor NumPy's error settings are an import's business."""
    code = (
        "import numpy as np; before = (np.random.get_state()[1].tobytes(), np.geterr(), np.get_printoptions())\n"
        "import minilora\n"
        "assert before == (np.random.get_state()[1].tobytes(), np.geterr(), np.get_printoptions())"
    )
    run = run_python(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- the public names ---


@pytest.mark.parametrize("name", ml.__all__)
def test_a_public_name_is_there_and_documented(name):
    thing = getattr(ml, name)
    doc = inspect.getdoc(thing)
    assert doc
    assert not doc.startswith(f"{name}(")  # what a dataclass or NamedTuple without a docstring gets
    assert doc[0].isupper() or not doc[0].isalpha()


def test_the_public_names_are_sorted_and_complete():
    """Everything that `minilora/__init__.py` imports is public, and the other way round."""
    imported = {alias.asname or alias.name for node in ast.walk(TREES[PACKAGE / "__init__.py"])
                if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    assert sorted(imported) == sorted(ml.__all__)
    assert len(set(ml.__all__)) == len(ml.__all__)


def test_every_module_and_public_definition_of_the_core_has_a_docstring():
    """Also those that are not exported: the sources are there to be read."""
    core = {source: tree for source, tree in TREES.items() if PACKAGE / "experiments" not in source.parents}
    missing = [source.name for source, tree in core.items() if not ast.get_docstring(tree)]
    for source, tree in core.items():
        definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        missing += [f"{source.name}: {node.name}" for node in definitions
                    if not node.name.startswith("_") and not ast.get_docstring(node)]  # fmt: skip
    assert not missing


def test_the_design_s_example_runs(tmp_path):
    """The public surface in one go, as a first user would write it."""
    config = ml.ModelConfig(vocab_size=27, context_length=16, d_model=32, n_heads=4, n_layers=2, d_ff=128)
    ml.init_params(config, np.random.default_rng(0))
    base = ml.load_base("surnames")
    lora = ml.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"],
                         layers_to_transform=None, bias="none", init_lora_weights=True, use_rslora=False)  # fmt: skip
    adapter = ml.init_adapter(base.params, lora, np.random.default_rng(0))
    train, validation = ml.names_task("female", 40, seed=0)
    logits = ml.forward(base.params, train.inputs, base.config, adapter=adapter)
    assert logits.shape == (40, 16, 27)
    history = ml.fit(base, lora, train=train, validation=validation, config=ml.TrainConfig(steps=4), seed=0)
    ml.save_adapter(history.best, tmp_path / "my-adapter")
    merged = ml.merge(base.params, ml.load_adapter(tmp_path / "my-adapter"))
    loss = ml.evaluate(ml.Model(base.config, merged), validation)
    assert loss == pytest.approx(history.best_loss, rel=1e-4)
    assert ml.count_parameters(base.params, lora).trainable == 2048


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_the_version_is_the_same_everywhere():
    assert ml.__version__ == version("minilora")
    citation, changes = (
        (PACKAGE.parent / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md")
    )
    assert f"\nversion: {ml.__version__}\n" in citation
    assert re.findall(r"^## (\d.*)$", changes, re.M)[0] == ml.__version__


# --- what the sources may not do ---


def calls_and_imports(tree):
    """Names that are called, and modules that are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield function.id if isinstance(function, ast.Name) else getattr(function, "attr", ""), node
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node


FORBIDDEN = ("eval", "exec", "compile", "__import__", "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_is_run_from_data(source):
    """No eval, exec or pickle, and no np.load that would unpickle. `re.compile` is another compile."""
    for name, node in calls_and_imports(TREES[source]):
        is_regex = name == "compile" and isinstance(node.func, ast.Attribute) and node.func.value.id == "re"
        assert name.split(".")[0] not in FORBIDDEN or is_regex, f"{source.name}:{node.lineno}: {name}"
        if isinstance(node, ast.Call):
            allowed = [word for word in node.keywords if word.arg == "allow_pickle" and word.value.value is not False]
            assert not allowed, f"{source.name}:{node.lineno}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_randomness(source):
    """Randomness is an explicit generator: `np.random.normal` and its like are not used, nor the `random` module."""
    for node in ast.walk(TREES[source]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
            assert node.attr in ("default_rng", "Generator", "SeedSequence"), f"{source.name}:{node.lineno}"
        if isinstance(node, ast.Import):
            assert "random" not in [alias.name for alias in node.names], f"{source.name}:{node.lineno}"


# --- who imports whom ---

MODULES = {"minilora." + ".".join(source.relative_to(PACKAGE).with_suffix("").parts): source for source in SOURCES}
MODULES = {name.removesuffix(".__init__"): source for name, source in MODULES.items()}


def minilora_imports(source):
    """Modules of minilora that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[source]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name}: a relative import"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name in MODULES}
            found |= modules or {module}
    return {name.removeprefix("minilora.") for name in found if name.split(".")[0] == "minilora"}


# A module may import those of the lines above its own, and nothing else of minilora.
LAYERS = [
    {"autodiff", "checks", "conditions", "trees"},
    {"files", "ops", "optim", "lora_config"},
    {"adapter", "command_line"},
    {"model", "tensors"},
    {"dataset", "lora", "peft_format"},
    {"checkpoint", "evaluation"},
    {"train", "opt"},
    {"stack", "data.names", "data.base"},
    {"data.planted", "data.pretrain", "generate"},
]


@pytest.mark.parametrize("module", sorted(set().union(*LAYERS)))
def test_imports_point_one_way(module):
    below = set()
    for layer in LAYERS:
        if module in layer:
            break
        below |= layer
    imported = minilora_imports((PACKAGE / module.replace(".", "/")).with_suffix(".py"))
    assert imported <= below


def test_every_module_below_the_experiments_has_its_layer():
    """So that a new module is placed when it is written."""
    modules = {".".join(source.relative_to(PACKAGE).with_suffix("").parts) for source in SOURCES}
    placed = set().union(*LAYERS) | {"__init__", "data.__init__"}
    assert {name for name in modules if name.split(".")[0] not in ("experiments", "conformance")} == placed


# What the rooms above the core may import, beside the core: the way of the data, and nothing against it.
ROOMS = {
    "conformance.interface": set(),
    "conformance.peers": {"conformance.interface"},
    "conformance.vectors": {"conformance.interface", "conformance.peers"},
    "conformance.make_vectors": {"conformance.vectors"},
    "conformance.checks": {"conformance.interface", "conformance.peers", "conformance.vectors"},
    "conformance.mutants": {"conformance.interface", "conformance.peers"},
    "conformance.running": {"conformance.interface", "conformance.checks"},
    "conformance.__init__": {"conformance.interface", "conformance.checks", "conformance.running"},
    "conformance.__main__": {"conformance.interface", "conformance.checks", "conformance.running"},
    "experiments.__init__": set(),
    "experiments.evidence": set(),
    "experiments.studies": {"experiments.evidence", "experiments.pages.plots"},
    "experiments.engine": {"experiments.evidence"},
    "experiments.pages.plots": {"experiments.evidence"},
    "experiments.pages": {"experiments.evidence", "experiments.engine"},
    "experiments.__main__": {"experiments.evidence", "experiments.studies", "experiments.engine", "experiments.pages"},
}


def room_of(name):
    """The innermost room that a module, by its name without "minilora.", is in; "" for the core."""
    return max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len, default="")


ABOVE = {name.removeprefix("minilora."): source for name, source in MODULES.items()
         if name.startswith(("minilora.experiments", "minilora.conformance"))}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ABOVE))
def test_rooms_import_along_the_way_of_the_data(name):
    source = ABOVE[name]
    own = room_of(f"{name}.__init__" if f"{name}.__init__" in ROOMS else name)
    assert own, "a new room has its line in ROOMS"
    for other in minilora_imports(source):
        room = room_of(other)
        allowed = ROOMS[own] | {own, ""}
        assert room in allowed or any(room.startswith(f"{one}.") for one in allowed - {""}), f"{name} imports {other}"


def test_nothing_below_imports_experiments_or_conformance():
    for name, source in MODULES.items():
        if name.removeprefix("minilora.") not in ABOVE:
            assert not {one.split(".")[0] for one in minilora_imports(source)} & {"experiments", "conformance"}, name


def circle(imports):
    """Modules that import each other in a circle, or none; {module: what it imports}."""
    done: set[str] = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((found for one in sorted(imports[name]) if (found := walk(one, [*path, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(imports) if (found := walk(name, []))), [])


def test_no_modules_import_each_other():
    """Not inside a function either, nor for types alone."""
    imports = {name: {f"minilora.{one}" for one in minilora_imports(source)} & set(MODULES) - {name}
               for name, source in MODULES.items()}  # fmt: skip
    assert circle(imports) == []
    assert len(imports) > 70  # the walk saw the package


def test_the_circle_check_finds_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_layer_check_sees_imports_of_every_form(tmp_path, monkeypatch):
    source = tmp_path / "module.py"
    code = "import minilora.lora\nfrom minilora import train\ndef f():\n    from minilora.experiments import runner\n"
    monkeypatch.setitem(TREES, source, ast.parse(code))
    assert {name.split(".")[0] for name in minilora_imports(source)} == {"lora", "train", "experiments"}
