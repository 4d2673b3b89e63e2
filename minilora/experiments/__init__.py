"""Studies that measure what each LoRA parameter does: `python -m minilora.experiments --list`.

The rooms, in the order in which data flow: `studies` ask (a file a question), `engine` runs, `evidence` decides,
`pages` show. `__main__` is the command, and the only module that knows them all.
"""
