"""`python tutorials/book.py` runs every chapter and makes notebooks and an HTML book of them, in `tutorials/_build`.

A chapter is a Jupytext MyST notebook: text with code cells in it. In a cell, the lines that begin with `#>` are what
it prints; whatever differs from that, raises, or takes too long is reported with chapter, cell and line. A cell
tagged `raises-exception` has to end in an AssertionError, whose message is quoted too: it is for the reader to mend.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from minilora.command_line import (
    DONE,
    FAILED,
    Parser,
    UsageError,
    check_folder,
    command,
    complain,
    in_a_line,
    install,
    leave,
    write_file,
)

HERE = Path(__file__).parent
ROOT = HERE.parent
SECONDS = 120.0  # that a chapter may take, and so any cell
QUOTE = "#>"
TITLE = "minilora: LoRA from scratch"
ONE_FILE = Path("micro_lora.py")  # in this folder: all that the chapters build, in one place


def chapters() -> list[Path]:
    """The chapters in reading order."""
    return sorted(HERE.glob("[0-9][0-9]_*.md"))


def read(path: Path):
    """A chapter as a notebook; each code cell knows its number, its first line in the file and what it has to print."""
    import jupytext

    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md:myst")
    lines = [i + 1 for i, line in enumerate(text.split("\n"), 1) if line.startswith("```{code-cell}")]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, (cell, line) in enumerate(zip(cells, lines, strict=True), 1):
        cell.metadata["where"] = f"{path.name}, cell {number} (line {line})"
        cell.source, cell.metadata["quoted"] = without_quotes(cell.source)
    return notebook


def without_quotes(source: str) -> tuple[str, list[str]]:
    """The code of a cell, and the lines that it says it prints."""
    lines = [(line, line.strip()) for line in source.split("\n")]
    quoted = [bare.removeprefix(QUOTE).removeprefix(" ") for _, bare in lines if bare.startswith(QUOTE)]
    return "\n".join(line for line, bare in lines if not bare.startswith(QUOTE)).rstrip("\n"), quoted


def run(notebook, folder: Path, seconds: float = SECONDS) -> float:
    """Run the cells in a fresh kernel in that folder; outputs go into the notebook. The seconds it took.

    A cell that runs longer is interrupted, which leaves an error in its outputs.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=max(1, round(seconds)), interrupt_on_timeout=True, allow_errors=True, kernel_name="python3",
        shutdown_kernel="immediate", extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    begin = time.perf_counter()
    try:
        client.execute()
    except BaseException as error:
        if getattr(client, "_async_cleanup_kernel_future", None) is not None:  # how nbclient takes Ctrl-C
            raise KeyboardInterrupt from error
        raise
    return time.perf_counter() - begin


def same_machine() -> bool:
    """Whether this machine gives the bits of the one that the texts were made on, which made figures/ too."""
    from minilora.experiments.engine.provenance import machine

    made_on = json.loads((ROOT / "figures" / "provenance.json").read_text(encoding="utf-8"))["rank"]["machine"]
    return made_on == machine()


def problems(notebook, exact: bool = True) -> Iterator[str]:
    """What is wrong with a notebook that was run, each with chapter and cell.

    Elsewhere than on the same kind of machine (not `exact`) the last bits differ, and training amplifies them.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for problem in cell_problems(cell, exact):
                yield f"{cell.metadata['where']}: {problem}"


def cell_problems(cell, exact: bool) -> Iterator[str]:
    """What a cell prints, raises or warns of that its text does not say."""
    errors = [one for one in cell.outputs if one.output_type == "error"]
    to_mend = "raises-exception" in cell.metadata.get("tags", [])
    for error in errors:
        if error.ename == "KeyboardInterrupt":
            yield "takes over its time"
        elif not to_mend or error.ename != "AssertionError":
            yield f"raises {error.ename}: {error.evalue}"
    if to_mend and not errors:
        yield "raises nothing, but is tagged as a cell to mend"
    warned = "".join(one.text for one in cell.outputs if one.get("name") == "stderr")
    if warned:
        yield f"writes to stderr: {warned.strip()}"
    printed, quoted = printed_by(cell), cell.metadata["quoted"]
    if not (printed == quoted if exact else like(printed, quoted)):
        yield f"prints {printed}, the text quotes {quoted}"


def like(printed: Sequence[str], quoted: Sequence[str]) -> bool:
    """Whether lines are the same but for numbers that differ by a fifth or 0.1, and for names that models write."""
    number = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
    if len(printed) != len(quoted):
        return False
    for one, other in zip(printed, quoted, strict=True):
        if re.fullmatch("[a-z ]+", one) and re.fullmatch("[a-z ]+", other):
            continue
        if number.sub("#", one).split() != number.sub("#", other).split():
            return False
        pairs = zip(
            *([float(found.replace(",", "")) for found in number.findall(line)] for line in (one, other)), strict=True
        )
        if any(abs(x - y) > 0.1 + 0.2 * abs(y) for x, y in pairs):
            return False
    return True


def printed_by(cell) -> list[str]:
    """The lines that a cell printed, and the message of the AssertionError that it ended in."""
    lines = "".join(one.text for one in cell.outputs if one.get("name") == "stdout").splitlines()
    return lines + [f"AssertionError: {one.evalue}" for one in cell.outputs if one.get("ename") == "AssertionError"]


def finished(notebook):
    """The notebook for readers: without what is there for the checks, or for code hosts (a drawn figure's copy)."""
    shown = re.compile(r"^!\[[^\]]*\]\(figures/[0-9][^)]*\)\n?", re.M)
    for cell in notebook.cells:
        for note in ("where", "quoted"):
            cell.metadata.pop(note, None)
        if cell.cell_type == "markdown":
            cell.source = shown.sub("", cell.source)
    return notebook


def moved(text: str, folder: Path) -> str:
    """Markdown of this folder for a book in another: links to chapters are to notebooks, others lead back to here.

    The ledger and `micro_lora.py` are pages of the book, and lines of the latter have their numbers there; other texts
    out of the folder are files to be opened, for which MyST has `path:`.
    """
    back = Path(os.path.relpath(ROOT, folder)).as_posix()
    text = text.replace("](README.md", "](index.md").replace("](../figures/CLAIMS.md", "](ledger.md")
    text = re.sub(r"\]\((\d\d_\w+)\.md", r"](\1.ipynb", text)
    text = re.sub(r"\]\(micro_lora\.py(#[\w-]*)?\)", "](micro_lora.md)", text)
    text = re.sub(r"\]\(\.\./([^)]*\.md)", rf"](path:{back}/\1", text)
    return text.replace("](../", f"]({back}/")


def make_notebooks(out: Path, wanted: Sequence[Path]) -> list[str]:
    """Run the chapters and write them as notebooks; what is wrong with them."""
    import jupytext
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    found: list[str] = []
    exact, ledger = same_machine(), ledger_numbers()
    for path in (bar := tqdm(wanted, unit="chapter")):
        bar.set_postfix_str(path.stem)
        notebook = read(path)
        try:
            seconds = run(notebook, out)
        except (RuntimeError, KeyError) as error:  # its kernel died, or there is none
            found.append(f"{path.name}: {type(error).__name__}: {in_a_line(error)}")
            continue
        found += problems(notebook, exact)
        found += [f"{path.name}: the prose has {one}, and no cell has" for one in unbacked(notebook, ledger)]
        if seconds > SECONDS:
            found.append(f"{path.name}: took {seconds:.0f} s, may take {SECONDS:.0f}")
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = moved(cell.source, out)
        jupytext.write(finished(notebook), out / f"{path.stem}.ipynb")
    return found


def make_book(notebooks: Path, out: Path) -> None:
    """The HTML book of the notebooks, which opens from a file; warnings, as for a broken link, are errors."""
    pages = "\n".join([*(path.stem for path in chapters()), ONE_FILE.stem, "ledger"])
    index = moved((HERE / "README.md").read_text(encoding="utf-8"), notebooks)
    contents = f"\n```{{toctree}}\n:hidden:\n:caption: Chapters\n\n{pages}\n```\n"
    (notebooks / "index.md").write_text(index + contents, encoding="utf-8")
    ledger = (ROOT / "figures" / "CLAIMS.md").read_text(encoding="utf-8")
    ledger = re.sub(r"\]\((\w+\.svg)\)", r"](../figures/\1)", ledger)
    (notebooks / "ledger.md").write_text(moved(ledger, notebooks), encoding="utf-8")
    listing = f"```{{code-block}} python\n:linenos:\n\n{(HERE / ONE_FILE).read_text(encoding='utf-8')}```"
    (notebooks / ONE_FILE.with_suffix(".md")).write_text(f"# Everything in one file\n\n{listing}\n", encoding="utf-8")
    for name in ("conf.py", "book.css"):
        shutil.copy(HERE / name, notebooks)
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", notebooks, out], check=True
    )


# --- what the text of a chapter has to have ---


def numbers(text: str) -> set[str]:
    """The numbers in a text as they are written: decimals, thousands, and integers of at least 10 but for years."""
    found = re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])", text)
    return {one for one in (one.rstrip(",") for one in found) if not re.fullmatch(r"\d|19\d\d|20\d\d", one)}


def prose(source: str) -> str:
    """Markdown without code, formulas, targets of links, comments, and numbers of lists and chapters."""
    for pattern in (
        r"```.*?```",
        r"\$\$.*?\$\$",
        r"`[^`\n]*`",
        r"\$[^$\n]*\$",
        r"<!--.*?-->",
        r"arXiv [\d.]+",
        r"\b[Cc]hapter \d+",
    ):
        source = re.sub(pattern, " ", source, flags=re.S)
    source = re.sub(r"\]\([^)]*\)", "]", source)
    return re.sub(r"^(# )?\d+\. ", "", source, flags=re.M)


def unbacked(notebook, ledger: dict[str, set[str]]) -> list[str]:
    """Numbers in the prose that no cell of the chapter has, nor the ledger for a claim that the paragraph names."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    in_cells = set().union(*(numbers("\n".join([cell.source, *cell.metadata["quoted"]])) for cell in cells))
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for paragraph in prose(cell.source).split("\n\n"):
                claims = re.findall(r"\b[A-Z]\d\b", paragraph)
                backed = in_cells.union(*(ledger.get(claim, set()) for claim in claims))
                found += sorted(one for one in numbers(paragraph) if one not in backed)
    return found


def ledger_numbers() -> dict[str, set[str]]:
    """{claim: every number that the committed ledger says of it}."""
    rows = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    lines = (ROOT / "figures" / "CLAIMS.md").read_text(encoding="utf-8").split("\n")
    return {
        row["id"]: set().union(
            *(numbers(line.replace("|", " ")) for line in lines if line.startswith(f"| {row['id']} "))
        )
        for row in rows
    }


def words(path: Path) -> int:
    """Words of a chapter's text, without code and formulas."""
    return len(re.findall(r"[\w'-]+", prose(path.read_text(encoding="utf-8").split("---\n", 2)[2])))


def minutes(path: Path) -> int:
    """Reading time: 150 words a minute, and a minute for each cell that neither draws nor is a solution."""
    to_read = path.read_text(encoding="utf-8").split("\n## Solutions")[0]
    return round(words(path) / 150 + to_read.count("```{code-cell}") - to_read.count("hide-input"))


def question(path: Path) -> str:
    """The question that a chapter opens with."""
    (asked,) = re.findall(r"^\*\*Question\.\*\* (.*?)\n\n", path.read_text(encoding="utf-8"), re.M | re.S)
    return asked.replace("\n", " ")


def with_map(index: str) -> str:
    """The index with its map filled in."""
    lines = ["| chapter | reading time | the question |", "| --- | --- | --- |"]
    for path in chapters():
        (title,) = re.findall(r"^# (.*)$", path.read_text(encoding="utf-8").split("\n```")[0], re.M)
        lines.append(f"| [{title}]({path.name}) | {minutes(path)} min | {question(path)} |")
    before, _, rest = index.partition("<!-- map -->")
    return before + "<!-- map -->\n" + "\n".join(lines) + "\n<!-- /map -->" + rest.partition("<!-- /map -->")[2]


def chosen(numbers: Sequence[str]) -> list[Path]:
    """The chapters with these numbers, as 6 or 06, or all; UsageError for one that there is not."""
    known = {int(path.name[:2]): path for path in chapters()}
    for one in numbers:
        if not (one.isascii() and one.isdecimal() and len(one) < 5 and int(one) in known):
            raise UsageError(f"CHAPTER: got {one!r}, takes {min(known)} to {max(known)}")
    wanted = {int(one) for one in numbers} or set(known)
    return [path for number, path in known.items() if number in wanted]


@command
def main(arguments: list[str]) -> int:
    """Make the notebooks and the book; 1 if a chapter is wrong."""
    options = Parser(
        "python tutorials/book.py", "Run the chapters and make notebooks and an HTML book of them.",
        failed="a chapter or the book is wrong",
    )  # fmt: skip
    options.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="numbers of chapters to run alone, no book made"
    )
    options.add_argument("--out", type=Path, default=HERE / "_build", metavar="DIR", help="where to write")
    options.add_argument("--map", action="store_true", help="fill in the map of the index and stop")
    given = options.parse_args(arguments)
    if given.map:
        index = HERE / "README.md"
        write_file(index, with_map(index.read_text(encoding="utf-8")))
        return DONE
    wanted = chosen(given.chapters)
    check_folder("--out", given.out)
    notebooks, html = given.out / "notebooks", given.out / "html"
    try:
        found = make_notebooks(notebooks, wanted)
        for problem in found:
            complain(problem)
        if not given.chapters:
            make_book(notebooks, html)
            print(f"notebooks: {notebooks}\nbook: {html / 'index.html'}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not there: {install('tutorials')}") from error
    except subprocess.CalledProcessError:
        complain("error: Sphinx found what is wrong with the book, see above")
        return FAILED
    return FAILED if found else DONE


if __name__ == "__main__":
    leave(main())
