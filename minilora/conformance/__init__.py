"""Reference checks for LoRA implementations: is *yours* right?

`run(implementation)` gives a row a check. In a test suite of your own:

    @pytest.mark.parametrize("one", conformance.CHECKS, ids=str)
    def test_lora(one):
        conformance.check(one, MyImplementation)

`python -m minilora.conformance --peer peft` prints the table for a library.
"""

from minilora.conformance.checks import CHECKS, Check, Failed
from minilora.conformance.interface import Implementation, NotOffered
from minilora.conformance.running import Result, check, run

__all__ = ["CHECKS", "Check", "Failed", "Implementation", "NotOffered", "Result", "check", "run"]
