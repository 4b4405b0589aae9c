"""The README's tree names every source file, once, in its folder."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tree_lists_every_source_file() -> None:
    listed: list[str] = []
    folder = ""
    for line in (ROOT / "README.md").read_text().split("## The tree", 1)[1].splitlines():
        if found := re.match(r"    ((?:sdk|service|examples|tests/benchmarks|tests/gpu)\S*)/ ", line):
            folder = found[1]
        elif found := re.match(r"      (\S+\.py) ", line):
            listed.append(f"{folder}/{found[1]}")
    sources = [
        path.relative_to(ROOT).as_posix()
        for part in ("sdk", "service", "examples", "tests/benchmarks", "tests/gpu")
        for path in (ROOT / part).rglob("*.py")
        if "migrations" not in path.parts
        and not path.name.startswith("test_")
        and (path.name != "__init__.py" or path.parent == ROOT / "sdk" / "booth")
    ]
    assert sorted(listed) == sorted(sources)
