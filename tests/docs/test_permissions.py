from __future__ import annotations

from pathlib import Path

from wardkey.domain.permissions import (
    ROLE_TABLE,
    TICKED_EXPLICITLY,
    TYPE_TABLE,
    KeyType,
    Permission,
    Role,
)

PAGE = (Path(__file__).parents[2] / "docs" / "permissions.md").read_text()


def drawn(title: str) -> dict[str, dict[str, bool]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.split(title)[1].split("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    heads = [head.split(" ")[0] for head in rows[0][1:]]
    return {
        row[0].split("`")[1]: dict(zip(heads, (c == "yes" for c in row[1:]), strict=True))
        for row in rows[2:]
    }


def test_the_documented_key_type_table_matches_the_code() -> None:
    kept = {str(p): {str(t): p in TYPE_TABLE[t] for t in KeyType} for p in Permission}
    assert drawn("What a key of each type can hold") == kept


def test_the_documented_role_table_matches_the_code() -> None:
    kept = {str(p): {str(r): p in ROLE_TABLE[r] for r in Role} for p in Permission}
    assert drawn("What each role holds") == kept


def test_the_marked_permissions_are_those_granted_explicitly() -> None:
    marked = {
        line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `") and "¹" in line
    }
    assert marked == TICKED_EXPLICITLY
