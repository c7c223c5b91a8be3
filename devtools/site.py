"""Lay out the pages of the documentation site: ``python -m devtools.site``, which ``make site`` calls.

The site has the pages of the repository, under their own paths, so that their links are its links. What they link to
beside pages and pictures, as a test or a script, is linked on GitHub.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from devtools import ROOT

__all__ = ["lay_out"]

_GITHUB = "https://github.com/robgolding/celery-s3/blob/master/"
_PAGES = ("*.md", "docs/**/*.md", "benchmarks/*.md")
_PICTURES = ("docs/**/*.svg", "docs/**/*.png", "benchmarks/runs/*.svg")
#: What stands in the API reference: all that applications import.
_MODULES = {
    "Files": "celery_s3.S3File",
    "asyncio": "celery_s3.aio",
    "Typed values": "celery_s3.typed",
    "Large messages": "celery_s3.claimcheck",
    "Costs": "celery_s3.costs.prices",
    "Errors": "celery_s3.errors",
    "The backend": "celery_s3.backends.s3.S3Backend",
    "Servers for tests": "celery_s3.dev.seaweed",
    "A stand-in for SQS": "celery_s3.dev.sqs",
    "A bucket in memory": "celery_s3.dev.memory",
}


def lay_out(target: Path) -> None:
    """Write all pages and pictures below ``target``, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    pages = [page for pattern in _PAGES for page in ROOT.glob(pattern)]
    pictures = [picture for pattern in _PICTURES for picture in ROOT.glob(pattern)]
    known = {file.resolve() for file in (*pages, *pictures)}
    for picture in pictures:
        shutil.copy(picture, _place(target, picture))
    for page in pages:
        _place(target, page).write_text(_linked(page, known), encoding="utf-8")
    parts = [f"## {title}\n\n::: {module}\n" for title, module in _MODULES.items()]
    (target / "docs" / "python.md").write_text("\n".join(["# Python\n", *parts]), encoding="utf-8")


def _place(target: Path, file: Path) -> Path:
    place = target / file.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _linked(page: Path, known: set[Path]) -> str:
    """A page whose links to what is no page lead to GitHub."""

    def link(found: re.Match[str]) -> str:
        path, _, anchor = found[1].partition("#")
        target = (page.parent / path).resolve()
        if not path or target in known or not target.is_relative_to(ROOT):
            return found[0]
        return f"]({_GITHUB}{target.relative_to(ROOT)}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\((?!https?:|mailto:)([^)\s]+)\)", link, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    lay_out(ROOT / "build" / "site-pages")
