"""Copies result tables into guides: ``python -m benchmarks.generation.tables docs/generation-large.md``.

A guide marks the place with ``<!-- results: large -->`` and ``<!-- end of results -->``, each on a line of its own;
what lies between is replaced by ``results/large.md``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.generation.results import FOLDER
from zoomfeat.files import replacing

_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(text: str, folder: Path = FOLDER) -> str:
    """A guide with the tables that are in the folder; places without one stay as they are."""

    def table(place: re.Match[str]) -> str:
        path = folder / f"{place[2]}.md"
        return f"{place[1]}{path.read_text(encoding='utf-8')}{place[3]}" if path.is_file() else place[0]

    return _PLACE.sub(table, text)


def main() -> None:
    """Rewrites the guides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guides", type=Path, nargs="+")
    for guide in parser.parse_args().guides:
        text = filled(guide.read_text(encoding="utf-8"))
        with replacing(guide) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
