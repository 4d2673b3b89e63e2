"""Chapter 13's block of PEFT code does what its text says, after the cell above it, under the real library."""

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import minilora as ml  # noqa: E402

CHAPTER = Path(__file__).parents[2] / "tutorials" / "13_check_your_own.md"


@pytest.mark.filterwarnings("ignore")
def test_the_block_of_peft_in_chapter_13(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = CHAPTER.read_text(encoding="utf-8")
    imports = re.search(r"^import json\n.*?\nimport safetensors\.numpy$", text, re.M | re.S).group()
    (cell,) = re.findall(r"```\{code-cell\} ipython3\n(import tempfile\n.*?)```", text, re.S)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    for code in (imports, cell, block):
        exec(code, names)
    base, tokens = names["base"], names["tokens"]
    assert np.abs(names["beside"] - names["before"]).max() > 0.1, "the adapter changes something"
    again = ml.forward(base.params, tokens, base.config, adapter=names["back"])
    np.testing.assert_array_equal(again, names["beside"])
    with torch.no_grad():
        np.testing.assert_allclose(names["merged"](torch.tensor(tokens)).numpy(), names["beside"], atol=1e-4)
