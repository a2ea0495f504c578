"""`python -m devhost demo [--telemetry FILE] | up`."""

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
            parser.add_argument("--telemetry", type=Path, help="a file for the app's events, a JSON line each")
            return demo.main(parser.parse_args(options).telemetry)
        case ["up"]:
            from devhost import up  # noqa: PLC0415  each command loads what it needs

            return up.main()
    print("usage: python -m devhost demo [--telemetry FILE] | up")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
