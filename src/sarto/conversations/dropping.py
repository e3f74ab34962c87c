"""The share of a dataset's rows that may be dropped: one rule for a file of any length."""

from __future__ import annotations

DROPPED_SHARE = 0.1


def refusal(name: str, dropped: int, rows: int, share: float = DROPPED_SHARE) -> str:
    """The reason for which a file with this many unusable rows is refused; empty if it is accepted. A file without a
    usable row is always refused."""
    if dropped < rows and dropped <= share * rows:
        return ""
    if rows == 0:
        return f"{name} has no rows; write one JSON object per line"
    if dropped == rows:
        return f"{name}: the only row cannot be used" if rows == 1 else f"{name}: none of {rows:,} rows can be used"
    of = f"{dropped:,} of {rows:,} rows cannot be used"
    return f"{name}: {of} ({100 * dropped / rows:.3g} %; at most {100 * share:g} % may be dropped)"
