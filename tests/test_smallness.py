"""The size of the code as README.md and CONTRIBUTING.md say it, and the limits that CONTRIBUTING.md sets.

`python tests/test_smallness.py` writes the sizes into both.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minilora"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PARTS = {
    "core": [*PACKAGE.glob("*.py"), *PACKAGE.glob("data/*.py")],
    "experiments": [*PACKAGE.glob("experiments/**/*.py")],
    "conformance": [*PACKAGE.glob("conformance/**/*.py")],
}
OPENING, CLOSING = "<!-- size -->\n", "<!-- /size -->"


def n_lines(source: Path) -> int:
    """Lines of a file, empty ones and comments too."""
    return len(source.read_text(encoding="utf-8").splitlines())


def functions(source: Path) -> Iterator[tuple[int, str]]:
    """(lines without the docstring, module and name) of every function and method."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            yield node.end_lineno - node.lineno + 1 - said, f"{source.relative_to(PACKAGE).as_posix()}: {node.name}"


def all_functions() -> list[tuple[int, str]]:
    """Those of all parts, the longest last; of equals the first by name."""
    found = [one for sources in PARTS.values() for source in sources for one in functions(source)]
    return sorted(found, key=lambda one: (one[0], [-ord(letter) for letter in one[1]]))


def sizes() -> str:
    """The sentences for the pages."""
    total = {part: sum(map(n_lines, sources)) for part, sources in PARTS.items()}
    long, module = max((n_lines(source), source.name) for source in PARTS["core"])
    lines, longest = all_functions()[-1]
    file, name = longest.split(": ")
    text = (
        f"The core, `minilora/*.py` and `minilora/data/*.py`, has {total['core']:,} lines in {len(PARTS['core'])} "
        f"modules, the longest `{module}` with {long}; experiments have {total['experiments']:,} and conformance "
        f"{total['conformance']:,}. The longest function of all, docstring not counted, is `{name}` in `{file}` with "
        f"{lines}."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def filled(page: str) -> str:
    """The page with the sizes of now."""
    before, _, rest = page.partition(OPENING)
    _, found, after = rest.partition(CLOSING)
    assert found, f"has no {OPENING.strip()} with a {CLOSING}"
    return before + OPENING + sizes() + CLOSING + after


def limits() -> dict[str, int]:
    """{what: lines} as CONTRIBUTING.md says it."""
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    words = {
        "module": r"A module of the core has at most ([\d,]+) lines",
        "function": r"a function at most ([\d,]+), docstring not counted",
        "core": r"the core has at most ([\d,]+) in all",
        "experiments": r"experiments ([\d,]+) and conformance",
        "conformance": r"and conformance ([\d,]+)\.",
    }
    return {what: int(re.search(pattern, text).group(1).replace(",", "")) for what, pattern in words.items()}


LIMITS = limits()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_pages_say_how_long_the_code_is(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python tests/test_smallness.py"


@pytest.mark.parametrize("source", PARTS["core"], ids=lambda path: path.name)
def test_a_module_of_the_core_is_short(source):
    assert n_lines(source) <= LIMITS["module"], "it has two jobs"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_within_its_limit(part):
    assert sum(map(n_lines, PARTS[part])) <= LIMITS[part], "something can go, or the limit is moved on purpose"


def test_functions_are_short():
    assert [one for one in all_functions() if one[0] > LIMITS["function"]] == []


def test_a_long_function_is_seen_and_its_docstring_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    source = tmp_path / "long.py"
    method = '    def f(self):\n        """One.\n\n        Two."""\n        return 1\n'
    source.write_text(f"class A:\n{method}\n\ndef g():\n" + "    x = 1\n" * 50)
    assert sorted(functions(source)) == [(2, "long.py: f"), (51, "long.py: g")]


if __name__ == "__main__":
    for one in PAGES:
        one.write_text(filled(one.read_text(encoding="utf-8")), encoding="utf-8")
    print(sizes(), end="")
