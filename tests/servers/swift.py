"""OpenStack Swift with s3api: proxy, account, container and object server on one device, and memcached."""

from __future__ import annotations

from pathlib import Path

from .base import Kind, RealServer, find, first_line

INSTALL = "apt: memcached liberasurecode1; pip, in a virtualenv on PATH: swift keystonemiddleware"

_SWIFT = """\
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = gold
default = yes
"""
_STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = root
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
fallocate_reserve = 0
log_level = WARNING
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
[{name}-updater]
[container-sharder]
"""
_FILTERS = (
    "catch_errors proxy-logging cache listing_formats bulk s3api tempauth copy container-quotas account-quotas"
    " slo dlo versioned_writes symlink proxy-logging"
)
_PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = root
swift_dir = {folder}
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = {filters} proxy-server
{sections}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""
_OPTIONS = {
    "cache": "memcache_servers = 127.0.0.1:{cache}",
    "s3api": "s3_acl = false\nlocation = us-east-1",
    "tempauth": "user_test_tester = {secret} .admin",
    "versioned_writes": "allow_versioned_writes = true\nallow_object_versioning = true",
}
_EGGS = {"cache": "memcache"}


class Swift(RealServer):
    """A cluster of one node without replicas, with Swift's own test users."""

    access_key = "test:tester"
    port_count = 5
    patience = 90.0

    def _run(self) -> None:
        proxy, cache, *storage = self.ports
        (self.folder / "devices" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text(_SWIFT)
        binaries = Path(find("swift-proxy-server", INSTALL)).parent
        servers = dict(zip(("account", "container", "object"), storage, strict=True))
        for name, port in servers.items():
            builder = [str(binaries / "swift-ring-builder"), f"{name}.builder"]
            self._once(*builder, "create", "4", "1", "1")
            self._once(*builder, "add", f"r1z1-127.0.0.1:{port}/d1", "1")
            self._once(*builder, "rebalance")
            (self.folder / f"{name}.conf").write_text(_STORAGE.format(name=name, port=port, folder=self.folder))
        sections = "\n".join(map(self._section, dict.fromkeys(_FILTERS.split())))
        conf = _PROXY.format(port=proxy, folder=self.folder, filters=_FILTERS, sections=sections)
        (self.folder / "proxy.conf").write_text(conf)
        memcached = [find("memcached", INSTALL), "-u", "root", "-l", "127.0.0.1", "-p", str(cache), "-m", "64"]
        self._child(memcached, lambda: True)
        for name in servers:
            self._child([str(binaries / f"swift-{name}-server"), str(self.folder / f"{name}.conf")], lambda: True)
        self._child([str(binaries / "swift-proxy-server"), str(self.folder / "proxy.conf")])

    def _section(self, name: str) -> str:
        options = _OPTIONS.get(name, "").format(cache=self.ports[1], secret=self.secret_key)
        return f"[filter:{name}]\nuse = egg:swift#{_EGGS.get(name, name.replace('-', '_'))}\n{options}"


def _version() -> str:
    python = Path(find("swift-proxy-server", INSTALL)).parent / "python"
    return first_line(str(python), "-c", "import importlib.metadata as m; print(m.version('swift'))")


_NO_REPLACEMENT = "If-Match is refused with 501"

KIND = Kind(
    name="swift",
    title="OpenStack Swift (s3api)",
    install=INSTALL,
    make=Swift,
    version=_version,
    lacks={
        "atomic create": "",
        "replace": "https://github.com/ceph/s3-tests/issues/218",
        "batch delete of versions": "",
        "conditional completion": "",
        "tags": "",
        "lifecycle": "https://docs.openstack.org/swift/latest/s3_compat.html",
    },
    failing={
        "test_store_contract::test_replace": _NO_REPLACEMENT,
        "test_replace_is_refused_for_another_version": _NO_REPLACEMENT,
        "test_replace_of_nothing_is_refused": _NO_REPLACEMENT,
        "test_a_race_of_creates_has_one_winner": "of two creates at the same time both are told that they won",
        "test_store_contract::test_delete_many": "a batch of 1,000 takes more than the 5 s of `read_timeout`",
        "test_tags": "tags are refused with 501",
    },
    unsteady=frozenset({"atomic create", "test_a_race_of_creates_has_one_winner", "test_delete_many"}),
    advice="delete by `celery s3 sweep`",
)
