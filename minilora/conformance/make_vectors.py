"""Make the reference vectors: `python -m minilora.conformance.make_vectors --out FOLDER`."""

import argparse
import sys
from pathlib import Path

from minilora.conformance.vectors import CONFIGS, make, to_files
from minilora.files import check_writable, replace_file


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.conformance.make_vectors", description=__doc__.partition(":")[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        check_writable(options.out)
        for name in CONFIGS:
            described, packed = to_files(make(name))
            replace_file(options.out / f"{name}.safetensors", packed)
            replace_file(options.out / f"{name}.json", described)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(CONFIGS)} vectors written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
