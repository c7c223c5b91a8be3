"""The run of a server as JSON: what it can do, and what became of each promise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import celery_s3

from .base import Kind

__all__ = ["PROMISES", "Run"]

#: The columns of the README's table: the tests that show one, and the capabilities of a server that it needs.
PROMISES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "results": (("test_store_fetch_forget", "test_odd_ids"), ("range of a short object", "empty object", "404")),
    "states, retries": (("test_states", "test_reads_are_whole", "test_states_on_a_worker"), ("create", "replace")),
    "SUCCESS is final": (("test_a_success_is_final", "test_races"), ("create", "atomic create", "replace")),
    "groups, chords": (("test_groups_on_a_worker",), ("create", "atomic create", "replace")),
    "large results, files": (
        ("test_large_result", "test_late_large_result", "test_file"),
        ("conditional completion", "ETag of a completion", "read of a version"),
    ),
    "ls, forget, sweep": (
        ("test_commands", "test_expired_results_are_swept", "test_forget_by_filter"),
        ("batch delete", "batch delete of versions", "delete of a version"),
    ),
    "init, doctor, rules": (("test_init_and_doctor",), ("lifecycle",)),
}


class Run:
    """The outcomes on one server."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, str]] = {}
        self._outcomes: dict[str, str] = {}

    def note(self, test: str, told: Mapping[str, Any], outcome: str) -> None:
        """One test's outcome: 'passed', 'failed', or 'skipped' where it failed as expected."""
        self._found |= told.get("capabilities", {})
        if self._outcomes.get(test, "passed") == "passed":
            self._outcomes[test] = outcome

    def write(self, folder: Path, kind: Kind) -> None:
        """Replace the server's run, where this one was of the whole battery and has found anything else."""
        if not self._found:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path, told = folder / f"{kind.name}.json", self._told(kind)
        before = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if before | {"date": told["date"]} != told:
            path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _told(self, kind: Kind) -> dict[str, Any]:
        reports = {name: lack for name, lack in kind.lacks.items() if lack}
        return {
            "server": kind.title,
            "version": kind.version(),
            "install": kind.install,
            "advice": kind.advice,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "celery_s3": celery_s3.__version__,
            "promises": {name: self._verdict(name, kind) for name in PROMISES},
            "capabilities": [
                {**one, "reported": reports.get(name, "") if one["verdict"] != "yes" else ""}
                for name, one in self._found.items()
            ],
        }

    def _verdict(self, promise: str, kind: Kind) -> dict[str, str]:
        tests, needed = PROMISES[promise]
        # what fails now and then is not kept, even where it did not show this time
        broken = [test for test in tests if self._outcomes.get(test) != "passed" or test in kind.unsteady]
        if broken:
            whys = dict.fromkeys(kind.failing.get(test, f"{test} failed") for test in broken)
            return {"verdict": "lacks", "how": "; ".join(whys)}
        lacking = [self._found[name] for name in needed if self._found[name]["verdict"] != "yes"]
        ways = dict.fromkeys(one["instead"] or one["found"] for one in lacking)
        return {"verdict": "worked around" if ways else "works", "how": "; ".join(ways)}
