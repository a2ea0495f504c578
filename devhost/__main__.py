"""`python -m devhost demo | up`."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    match arguments:
        case ["demo"]:
            from devhost import demo  # noqa: PLC0415  each command loads what it needs

            return demo.main()
        case ["up"]:
            from devhost import up  # noqa: PLC0415  each command loads what it needs

            return up.main()
    print("usage: python -m devhost demo | up")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
