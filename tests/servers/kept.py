"""The run of a server as JSON: what was asked, what was shown, and what became of each promise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import celery_s3

from .asked import QUESTIONS
from .base import Kind

__all__ = ["PROMISES", "WAYS", "Run"]

#: The columns of the README's table: tests of the battery, by name, and the questions that they depend on.
PROMISES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Results": (("test_store_fetch_forget", "test_odd_ids"), ("range_beyond",)),
    "States, retries": (("test_states",), ("replace_refused", "replace_quoted")),
    "SUCCESS is final": (("test_a_success_is_final", "test_races"), ("create", "create_race", "replace_refused")),
    "Groups, chords": (("test_worker",), ("create", "create_race", "replace_refused")),
    "Large results, files": (
        ("test_large_result", "test_late_large_result", "test_file"),
        ("completion_refused", "get_refused"),
    ),
    "ls, forget, sweep": (
        ("test_commands", "test_expired_results_are_swept", "test_forget_by_filter"),
        ("delete_many", "delete_many_matched", "delete_matched"),
    ),
    "init, doctor": (("test_init_and_doctor",), ("public_access", "encryption")),
    "Lifecycle rules": ((), ("lifecycle",)),
}
#: How the lack of an answer is made up for.
WAYS = {
    "create": "read before it is written: a FAILURE of the same moment may still replace a SUCCESS; chords poll",
    "create_race": "two writers of one moment may both be told that they were first",
    "replace_refused": "read before it is written",
    "replace_quoted": "etags are sent without quotes",
    "completion_refused": "looked for right before the completion",
    "get_refused": "the etag of each part is compared",
    "delete_many": "deleted with Content-MD5, else one by one",
    "delete_many_matched": "read or deleted one by one",
    "delete_matched": "read right before the deletion",
    "public_access": "left as it is, and said so",
    "encryption": "left as it is, and said so",
    "lifecycle": "`celery s3 sweep` by cron, or the daily `celery.backend_cleanup`",
}


class Run:
    """The outcomes on one server."""

    def __init__(self) -> None:
        self._answers: dict[str, bool] = {}
        self._outcomes: dict[str, str] = {}

    def note(self, test: str, told: Mapping[str, Any], outcome: str) -> None:
        """One test's outcome: 'passed', 'failed', or 'skipped' where it failed as expected."""
        if "question" in told:
            self._answers[told["question"]] = told["answer"]
        elif self._outcomes.get(test, "passed") == "passed":
            self._outcomes[test] = outcome

    def write(self, folder: Path, kind: Kind) -> None:
        """Replace the server's run."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._told(kind), indent=1, ensure_ascii=False)
        (folder / f"{kind.name}.json").write_text(text + "\n", encoding="utf-8")

    def _told(self, kind: Kind) -> dict[str, Any]:
        return {
            "server": kind.title,
            "version": kind.version(),
            "install": kind.install,
            "advice": kind.advice,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "celery_s3": celery_s3.__version__,
            "promises": {name: self._verdict(name, kind) for name in PROMISES},
            "answers": {name: self._answer(name, kind) for name in QUESTIONS if name in self._answers},
        }

    def _verdict(self, promise: str, kind: Kind) -> dict[str, str]:
        tests, questions = PROMISES[promise]
        broken = [test for test in tests if self._outcomes.get(test) != "passed"]
        if broken:
            return {"verdict": "lacks", "how": "; ".join(kind.failing.get(test, "not shown") for test in broken)}
        ways = dict.fromkeys(WAYS[one] for one in questions if self._answers.get(one) is False)
        return {"verdict": "worked around", "how": "; ".join(ways)} if ways else {"verdict": "works", "how": ""}

    def _answer(self, name: str, kind: Kind) -> dict[str, Any]:
        told: dict[str, Any] = {"question": QUESTIONS[name][0], "works": self._answers[name]}
        if not self._answers[name]:
            lack = kind.lacks.get(name)
            told |= {"instead": lack.text if lack else "", "reported": lack.reported if lack else ""}
        return told
