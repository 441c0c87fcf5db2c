"""verdict: one word for a run."""

from __future__ import annotations

from collections.abc import Iterable

from normlens.report.finding import Finding

__all__ = ["verdict"]

WORDS = {"sick": "sick", "look": "look here", "note": "healthy"}


def verdict(findings: Iterable[Finding]) -> str:
    """Return "sick", "look here" or "healthy", as the worst of the findings says; notes leave a run healthy.

    Args:
        findings: what :func:`normlens.report.diagnose.diagnose` found.
    """
    return WORDS[min(findings, default=Finding("note", "", "", None, "")).severity]
