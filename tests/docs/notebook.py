"""Runs the cells of a notebook in this process and compares what they print with what the notebook shows.

    python tests/docs/notebook.py NOTEBOOK.ipynb

The working directory takes the files that cells write.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run(path: Path) -> None:
    """Raise AssertionError at the first cell that prints something else."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if source.startswith("%%writefile "):
            head, _, text = source.partition("\n")
            Path(head.split()[1]).write_text(text, encoding="utf-8")
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, f"{path.name}, cell {number}", "exec"), space)
        shown = "".join("".join(output.get("text", ())) for output in cell["outputs"])
        assert printed.getvalue().rstrip() == shown.rstrip(), f"cell {number} shows\n{shown}\nand prints\n{printed.getvalue()}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    run(Path(sys.argv[1]))
