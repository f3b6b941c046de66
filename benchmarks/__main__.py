"""python -m benchmarks times the layers of a network."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from .command import add_arguments, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main() -> int:
    """0 when it worked, 2 with one line on standard error when what was asked for is wrong or a result is."""
    parser = _Parser(prog="python -m benchmarks", description="Time the scores of a network's layers against other ways.")
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, TypeError, OSError, RuntimeError) as problem:
        print(f"benchmarks: error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
