"""What README.md and CONTRIBUTING.md say is what the code does."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import minilora as ml
from minilora.conformance import CHECKS
from minilora.experiments import __main__ as command
from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.runs import CONSTANT, MEASURED, from_csv
from minilora.experiments.pages import check
from minilora.experiments.pages.ledger import verdict_summary
from minilora.experiments.studies import load_studies

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "figures" / "quick"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_example_prints_what_its_comments_say(tmp_path, monkeypatch):
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path("example.py")
    promised = [line.removeprefix("# ") for line in example.split("\n") if line.startswith("# ")]
    assert printed.getvalue().split("\n")[:-1] == promised
    assert {path.name for path in Path("my-adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_there_are_two_commands_and_the_second_one_is_what_ci_runs():
    commands = [line for block in blocks("sh") for line in block.strip().split("\n")]
    assert len(commands) == 2
    pattern = re.search(r"grep -m 1 -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text()).group(1)
    assert [command for command in commands if re.fullmatch(pattern.strip("^$"), command)] == commands[1:]


def test_the_verdicts_are_those_of_the_committed_claims():
    rows = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    shown = README.split("<!-- verdicts -->\n")[1].split("<!-- /verdicts -->")[0]
    assert shown == verdict_summary(rows)


def committed_results(todo, *arguments):
    """What runs gave when figures/quick was made, in the place of doing them; their names too, where they are shown."""
    results = {}
    for study in load_studies().values():
        if study.headline:
            runs = from_csv((QUICK / f"{study.name}.csv").read_text(encoding="utf-8"))
            shown = json.loads((QUICK / "samples.json").read_text(encoding="utf-8"))[study.name]
            for run in runs:
                label = next((label for label, wanted in study.samples.items() if run.settings.seed == 0 and all(
                    getattr(run.settings, name) == value for name, value in wanted.items())), None)  # fmt: skip
                measured = {name: getattr(run, name) for name in (*MEASURED, *CONSTANT)}
                results.setdefault(run.settings, measured | {"samples": []})
                if label in shown:
                    results[run.settings]["samples"] = shown[label]
    unseen = ["x"] * 12  # names that a run of the first seed wrote and no study shows
    return {one: results[one] | {"samples": [] if one.seed else results[one]["samples"] or unseen} for one in todo}


def test_the_sample_output_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    """Line by line, from the committed quick runs, which CI runs again; seconds are those of the machine."""
    monkeypatch.setattr("minilora.experiments.engine.workers.run_all", committed_results)
    assert command.main(["--quick", "--out", str(tmp_path / "quick")]) == 0
    printed = capsys.readouterr().out.replace(str(tmp_path), "figures")
    (shown,) = blocks("text")
    assert re.sub(r" \d+ s,", " 0 s,", shown) == re.sub(r" \d+ s,", " 0 s,", printed)
    assert f"It trains {printed.split()[0]} tiny models" in README


def test_all_claims_and_studies_are_counted_right():
    assert f"in {len(ARTICLE)} statements" in README
    assert len(load_studies()) == 14
    assert "runs all fourteen" in README


def test_the_checks_are_counted_right():
    assert f"runs {len(CHECKS)} checks" in " ".join(README.split())


def test_what_is_said_not_to_hold_is_what_does_not():
    rows = {row["id"]: row["verdict"] for row in json.loads((ROOT / "figures" / "claims.json").read_text())}
    section = README.split("What did not hold here")[1].split("To read with care")[0]
    named = {claim for bold in re.findall(r"\*\*(.*?)\*\*", section) for claim in re.findall(r"[A-Z]\d", bold)}
    assert named == {claim for claim, verdict in rows.items() if verdict != "supported"}


def test_the_base_is_as_described():
    base = ml.load_base()
    n_parameters = ml.count_parameters(base.params, None).total
    stated = json.loads((ROOT / "minilora" / "data" / "bases" / "surnames" / "config.json").read_text())
    assert f"scores\n{stated['validation_loss']:.3f} nats" in README
    deeper = json.loads((ROOT / "minilora" / "data" / "bases" / "surnames_4_layers" / "config.json").read_text())
    assert f"scores {deeper['validation_loss']:.3f}." in README
    assert f"{round(n_parameters, -3):,}" == "27,000"
    assert README.count("27,000") == 2


def test_the_tolerances_between_machines_are_as_described():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert f"losses agree to {check.MEAN_TOLERANCE:g} nats on average" in text
    assert f"by more than {check.EFFECT_TOLERANCE:g} half-widths of its interval" in text


def test_every_linked_file_is_there():
    for page in ("README.md", "CONTRIBUTING.md", "figures/CLAIMS.md"):
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert (folder / target).exists(), f"{page} links {target}"
