"""Write docs/compatibility.md from the table that tests/test_compatibility.py runs."""

from pathlib import Path

from test_compatibility import documentation

if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "compatibility.md").write_text(documentation())
