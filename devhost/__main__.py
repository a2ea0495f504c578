"""`python -m devhost demo [--telemetry FILE] | up | bench [--short] | simulate [--seeds N] [--first N] [--seed N]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    match arguments:
        case ["demo", *options]:
            from devhost import demo  # noqa: PLC0415  each command loads what it needs

            parser = argparse.ArgumentParser(prog="devhost demo")
            parser.add_argument("--telemetry", type=Path, help="a file for what the app tells of itself, a JSON line each")
            return demo.main(parser.parse_args(options).telemetry)
        case ["up"]:
            from devhost import up  # noqa: PLC0415  each command loads what it needs

            return up.main()
        case ["bench", *options]:
            from devhost import bench  # noqa: PLC0415  each command loads what it needs

            return bench.main(short="--short" in options)
        case ["simulate", *options]:
            from devhost.simulator import command  # noqa: PLC0415  each command loads what it needs

            parser = argparse.ArgumentParser(prog="devhost simulate")
            parser.add_argument("--seeds", type=int, default=5000, help="how many histories")
            parser.add_argument("--first", type=int, default=0, help="the first seed")
            parser.add_argument("--seed", type=int, help="one history, with its trace")
            request = parser.parse_args(options)
            return command.main(request.seeds, request.first, request.seed)
    print("usage: python -m devhost demo [--telemetry FILE] | up | bench | simulate")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
