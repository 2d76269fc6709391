"""Writes the table of models into docs/models.md, from what `make capabilities` measured and packaged."""

from __future__ import annotations

import re
from pathlib import Path

from foveate.api.capability_table import packaged
from foveate.cli.catalog import markdown_table

PAGE = Path(__file__).parent / "models.md"


def main() -> None:
    """Replace what stands between the marks of the table."""
    text = PAGE.read_text(encoding="utf-8")
    table = f"<!-- families -->\n{markdown_table(packaged().families)}\n<!-- /families -->"
    PAGE.write_text(re.sub(r"<!-- families -->.*<!-- /families -->", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
