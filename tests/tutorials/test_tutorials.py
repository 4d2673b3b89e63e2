"""Every chapter runs from top to bottom, prints what it says it prints, and has what a chapter has to have."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from drawings import assert_drawn_alike

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
spec = importlib.util.spec_from_file_location("book", TUTORIALS / "book.py")
assert spec is not None
assert spec.loader is not None
book = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book)

CHAPTERS = book.chapters()
INDEX = (TUTORIALS / "README.md").read_text(encoding="utf-8")
CLAIMS = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", [*CHAPTERS, TUTORIALS / "README.md"], ids=lambda path: path.stem)
pytestmark = pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery; a chapter's are in its outputs

LEDGER = book.ledger_numbers()


@each_chapter
def test_a_chapter_runs_and_prints_what_it_says(path, tmp_path):
    """In the time that a chapter may take: of a processor, as other tests run beside it."""
    notebook, before = book.read(path), os.times()
    waited = book.run(notebook, tmp_path, seconds=5 * book.SECONDS)
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = worked or waited  # not every system counts what children did
    exact = book.same_machine()
    found = list(book.problems(notebook, exact))
    assert not found, "\n".join(found)
    assert seconds < book.SECONDS, f"{path.name} took {seconds:.0f} s"
    drawn = {file.name for file in (tmp_path / "figures").glob("*")}
    assert drawn == {file.name for file in (TUTORIALS / "figures").glob(f"{path.name[:2]}_*")}
    for name in drawn if exact else ():
        assert_drawn_alike(*((one / "figures" / name).read_text() for one in (tmp_path, TUTORIALS)), points=0.5)


@each_chapter
def test_every_number_in_the_prose_is_a_cell_s_or_the_ledger_s(path):
    assert book.unbacked(book.read(path), LEDGER) == []


@each_chapter
def test_a_chapter_has_its_parts(path):
    text = path.read_text(encoding="utf-8")
    number = int(path.name[:2])
    assert re.search(rf"^# {number}\. ", text, re.M)
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings[-3:] == ["Exercises", "What you now know", "Solutions"]
    start, exercises, known, solutions = (
        text.split("\n## Exercises\n")[0],
        text.split("\n## Exercises\n")[1].split("\n## ")[0],
        text.split("\n## What you now know\n")[1].split("\n## ")[0],
        text.split("\n## Solutions\n")[1],
    )
    assert "**Question.**" in start
    assert "**Predict.**" in start
    assert re.findall(r"^(\d)\. ", exercises, re.M) == ["1", "2", "3"]
    assert len(re.findall(r"^- ", known, re.M)) == 3
    assert re.findall(r"^\*\*(\d)\.\*\* ", solutions, re.M) == ["1", "2", "3"]
    for part in solutions.split("\n**")[1:]:
        assert "```{code-cell}" in part, "solutions are run"
    follows = CHAPTERS[number] if number < len(CHAPTERS) else TUTORIALS / "README.md"
    assert f"]({follows.name})" in known, "leads on"
    assert f"](figures/{path.name[:2]}_" in text, "has a figure"
    to_mend = text.count("raises-exception")
    assert solutions.count("**The bug.**") == to_mend
    assert 500 <= book.words(path) <= 1500


@each_page
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), f"{path.name}: {target}"
        if there.suffix == ".py":  # that its lines are the right ones is for test_micro_lora.py
            assert not heading or re.fullmatch(r"L\d+-L\d+", heading), target
        elif heading:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings], target


def test_the_map_has_each_chapter_with_its_reading_time():
    assert INDEX.count("](01_a_weight_update_and_its_rank.md) | ") == 1
    assert book.with_map(INDEX) == INDEX, "run: python tutorials/book.py --map"


def test_the_answers_are_the_ledger_s_in_both_languages():
    """A row says what the ledger says, and its Chinese half has the same verdict and the same numbers."""
    rows = re.findall(r"^\| ([A-Z]\d) \| (.*?) \| (.*?) \|$", INDEX, re.M)
    assert [row[0] for row in rows] == [claim["id"] for claim in CLAIMS]
    verdicts = {"supported": "成立", "contradicted": "不成立", "inconclusive": "未定"}
    for (name, english, chinese), claim in zip(rows, CLAIMS, strict=True):
        assert english == f"{claim['statement']}: **{claim['verdict']}**, {claim['result']}", name
        assert f"：**{verdicts[claim['verdict']]}**，" in chinese, name
        said, found = (sorted(re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)) for text in (english, chinese))
        assert said == found, f"{name}: {said} in English, {found} in Chinese"


def test_the_teacher_s_line_gives_the_board():
    """The line of the lesson plan runs after chapter 6's first two cells, and gives the rows that the plan shows."""
    (line,) = re.findall(r"```python\n(.*?)```", INDEX, re.S)
    notebook = book.read(next(path for path in CHAPTERS if path.name.startswith("06")))
    first, second = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    board = INDEX.partition("<!-- board -->")[2].partition("<!-- /board -->")[0]
    rows = [[float(one) for one in row.split("|")[1:-1]] for row in board.strip().split("\n")[2:]]
    names: dict = {}
    exec(f"{first}\n{second.partition('AMPLE =')[0]}\n{line}", names)
    ranks = [int(r) for r, *_ in rows]
    found = names["sweep"](200, ranks, names["RATES"], seed=0, **names["SCARCE"])[..., 0].T
    for r, losses, row in zip(ranks, found, rows, strict=True):
        assert losses == pytest.approx(row[1:], abs=0.006 if book.same_machine() else 0.1), f"r={r}"


# --- the check itself ---

BAD = {
    "raises": ("1 / 0", r"cell 2 \(line 14\): raises ZeroDivisionError: division by zero"),
    "prints something else": ("print(1.25)\n#> 1.26", r"prints \['1.25'\], the text quotes \['1.26'\]"),
    "prints more": ("print(1)", r"prints \['1'\], the text quotes \[\]"),
    "is too slow": ("import time\ntime.sleep(60)", "takes over its time"),
    "warns": ("import warnings\nwarnings.warn('careful')", "writes to stderr: .*careful"),
    "mends nothing": (":tags: [raises-exception]\n\nassert True", "raises nothing, but is tagged"),
    "raises another error": (":tags: [raises-exception]\n\n1 / 0", "raises ZeroDivisionError"),
}  # fmt: skip
HEAD = """---
kernelspec:
  display_name: Python 3
  name: python3
---

```{code-cell} ipython3
print(0)
#> 0
```

Text.
"""


@pytest.mark.parametrize("what", BAD)
def test_a_bad_cell_is_named(what, tmp_path):
    cell, expected = BAD[what]
    chapter = tmp_path / "03_bad.md"
    chapter.write_text(f"{HEAD}```{{code-cell}} ipython3\n{cell}\n```\n", encoding="utf-8")
    notebook = book.read(chapter)
    book.run(notebook, tmp_path, seconds=2)
    (found,) = [one for one in book.problems(notebook) if re.search(expected, one)]
    assert found.startswith("03_bad.md, cell 2 (line 14): ")


def test_a_cell_to_mend_is_quoted_with_its_message(tmp_path):
    chapter = tmp_path / "04_good.md"
    cell = ':tags: [raises-exception]\n\nassert 1 > 2, "one is not larger"\n#> AssertionError: one is not larger'
    chapter.write_text(f"{HEAD}```{{code-cell}} ipython3\n{cell}\n```\n", encoding="utf-8")
    notebook = book.read(chapter)
    book.run(notebook, tmp_path)
    assert list(book.problems(notebook)) == []


def test_elsewhere_numbers_may_differ_a_little_and_words_may_not():
    quoted = ["loss 2.103 at step 1,024", "muse el anoney", "the same: True"]
    assert book.like(quoted, quoted)
    assert book.like(["loss 2.099 at step 1,000", "muse al annabel", "the same: True"], quoted)
    for other in (
        ["loss 2.9 at step 1,024", *quoted[1:]],
        ["gain 2.103 at step 1,024", *quoted[1:]],
        [*quoted[:2], "the same: False"],
        quoted[:2],
    ):
        assert not book.like(other, quoted)


def test_a_number_that_nothing_printed_is_found(tmp_path):
    chapter = tmp_path / "03_bad.md"
    text = "Half of 0.5 is 0.25, or 1,000 of 4 in `0.75` and $0.8$; see (R2): 0.099. In 2021, 12 letters.\n\n0.099\n"
    chapter.write_text(f"{HEAD}{text}\n```{{code-cell}} ipython3\nprint(0.5)\n#> 0.5\n```\n", encoding="utf-8")
    assert book.unbacked(book.read(chapter), LEDGER) == ["0.25", "1,000", "12", "0.099"]


def test_the_book_is_made_and_a_broken_link_in_it_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("myst_nb")
    small = tmp_path / "tutorials"
    small.mkdir()
    for name in ("conf.py", "book.css", "micro_lora.py"):
        shutil.copy(TUTORIALS / name, small)
    links = "[index](README.md), [`merge`](micro_lora.py#L12-L13)"
    (small / "01_small.md").write_text(f"{HEAD}# 1. Small\n\n$x^2$ and {links}.\n", encoding="utf-8")
    (small / "README.md").write_text("# Index\n\n[small](01_small.md), [one](micro_lora.py)\n", encoding="utf-8")
    monkeypatch.setattr(book, "HERE", small)
    assert book.main(["--out", str(small / "_build")]) == 0
    page = (small / "_build" / "html" / "01_small.html").read_text(encoding="utf-8")
    assert "<msup>" in page
    assert 'href="index.html"' in page
    assert re.search(r'href="micro_lora.html">(<[^>]*>)*merge', page), "lines of the file are on its page"
    listing = (small / "_build" / "html" / "micro_lora.html").read_text(encoding="utf-8")
    last = len((TUTORIALS / "micro_lora.py").read_text(encoding="utf-8").splitlines())
    assert re.findall(r'class="linenos">(?: *)(\d+)<', listing) == [str(line) for line in range(1, last + 1)]
    assert "lora_alpha" in listing
    assert "http://" not in re.sub(r'http://www\.w3\.org[^"]*', "", page), "nothing is fetched"
    (small / "01_small.md").write_text(f"{HEAD}# 1. Small\n\n[nowhere](99_nowhere.md)\n", encoding="utf-8")
    assert book.main(["--out", str(small / "_build")]) == 1
