"""``python -m seal_lib.audit FILE…``: every number that released result files hold, recomputed, with intervals.

It reads the authors' files of single passages (query_server), of continued pretraining (both layouts) and of continual
edits, gzipped or not; of a folder, every JSON file in it. It prints Markdown tables, or JSON with ``--json``. For a
file that cannot be used it prints one sentence on stderr and goes on.

The exit status is 0; 1 if a file could not be used; 2 if none could.
"""

import argparse
import json
import sys
from pathlib import Path

from seal_lib.audit import tables
from seal_lib.errors import command_line
from seal_lib.report.tables import to_markdown


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.audit", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a result file, or a folder of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    chosen = parser.parse_args(arguments)
    found = tables.audit(chosen.files)
    if chosen.json:
        print(json.dumps(tables.as_json(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for title, table in tables.shown(found).items():
            print(f"## {title}\n\n{to_markdown(table)}\n")
        if found.remarks:
            print("## Remarks\n\n" + "\n".join(f"* {remark}" for remark in found.remarks) + "\n")
    for sentence in found.refused:
        print(sentence, file=sys.stderr)
    return 0 if not found.refused else 1 if found.files else 2


if __name__ == "__main__":
    sys.exit(main())
