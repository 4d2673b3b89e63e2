"""Studies that measure what each LoRA parameter does: `python -m minilora.experiments --list`."""
