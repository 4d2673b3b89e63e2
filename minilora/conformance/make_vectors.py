"""Make the reference vectors: `python -m minilora.conformance.make_vectors --out FOLDER`."""

from pathlib import Path

from minilora.command_line import DONE, Parser, check_folder, command, leave, write_file
from minilora.conformance.vectors import CONFIGS, make, to_files


@command
def main(arguments: list[str]) -> int:
    """The command line."""
    parser = Parser(
        "python -m minilora.conformance.make_vectors", __doc__.partition(":")[0], failed="a file could not be written"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    options = parser.parse_args(arguments)
    check_folder("--out", options.out)
    for name in CONFIGS:
        described, packed = to_files(make(name))
        write_file(options.out / f"{name}.safetensors", packed)
        write_file(options.out / f"{name}.json", described)
    print(f"{len(CONFIGS)} vectors written to {options.out}")
    return DONE


if __name__ == "__main__":
    leave(main())
