"""Real servers for the tests, each started when a test first asks for it, one set per pytest-xdist process.

==================  =====================================================================================
``seaweed``         SeaweedFS: the S3 server that everything is tried on
``moto_s3``         moto: a second implementation of S3, without authentication
``sqs``             the same moto: SQS
``real_server``     any of the servers of ``servers/``, for the fixture ``server`` of contract tests and battery
``redis_url``       a Redis; the test is skipped where none is installed
``rabbitmq_url``    a RabbitMQ; likewise
``proxy``           a :class:`Proxy` in front of ``seaweed``, as new for every test
``proxy_for``       another one: ``proxy_for(moto_s3, strip_preconditions=True)``
``certificate``     certificate and key file for 127.0.0.1, for ``proxy_for(seaweed, tls=certificate)``
``prefix``          key prefix that no other test uses; ``settings_for`` and ``make_app`` use it
``fresh_bucket``    ``fresh_bucket(server)``: the name of a new bucket, gone after the test
``settings_for``    ``settings_for(server, **overrides)``: :class:`Settings`
``make_app``        ``make_app(server, broker="memory", **conf)``: a Celery app with our backend, closed at the end
``no_files_in_use`` a process that has neither read nor sent a file so far
``worker``          ``worker(app, tasks, pool="prefork", concurrency=2, args=(), env={})``: a real worker, ready
``eventually``      ``eventually(condition, timeout=10)``: wait for a true value and return it
==================  =====================================================================================

A server whose binary is missing skips its tests; under CI (``CI`` is set) it fails them.
``--store=seaweed`` has SeaweedFS answer what counts requests, else a bucket in memory does: see
``integration/conftest.py``. No test is tried twice: one that fails now and then is a finding.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import servers
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from kombu.transport import filesystem
from nursery import Nursery

from celery_s3.dev.process import S3Server, ServerNotStarted, environment, free_ports, spawn, stop, tail, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.dev.sqs import SQSServer
from celery_s3.files import whose
from celery_s3.settings import Secret, Settings
from devtools.proxy import Proxy
from devtools.rabbitmq import installed, rabbitmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nursery import Forked

# No deadlines: the machine is shared. Under CI the same examples every time: a find there could not be repeated.
hypothesis.settings.register_profile("celery-s3", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("celery-s3")

# A shell lets what it starts in the background ignore Ctrl-C, and so would all that these tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Where a tasks file of ``worker`` finds its configuration, as JSON.
CONF_VARIABLE = "CELERY_S3_TEST_CONF"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        choices=("memory", "seaweed"),
        default="memory",
        help="where the tests that count requests store: in memory (default), or on SeaweedFS behind a proxy",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes ten seconds and more, mostly waiting; these begin first")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: none is left to run alone when all others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    # else each full collection of garbage looks through thousands of tests
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_credentials_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    empty = tmp_path_factory.mktemp("aws") / "empty"
    empty.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(empty))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(empty))
        yield


def _started(server: Any) -> Any:
    try:
        return server.start()
    except ServerNotStarted as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))


# -- servers


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedFS]:
    server = _started(SeaweedFS())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqs() -> Iterator[SQSServer]:
    server = _started(SQSServer())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto_s3(sqs: SQSServer) -> SQSServer:
    return sqs


@pytest.fixture(scope="session")
def _server_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    shared = {"seaweed": "seaweed", "moto": "moto_s3"}
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Any:
            if name in shared:
                return request.getfixturevalue(shared[name])
            one = _started(servers.kind(name).make())
            stack.callback(one.stop)
            return one

        yield start


@pytest.fixture
def real_server(_server_of: Callable[[str], Any]) -> Callable[[pytest.FixtureRequest], Any]:
    """``real_server(request)``: the one that a parametrized fixture names, started once a process.

    A test that its file says will fail there is expected to, and fails on the day when it does not; but for what only
    shows now and then.
    """

    def take(request: pytest.FixtureRequest) -> Any:
        node = request.node
        kind = servers.kind(request.param)
        lacks = kind.expected(node.path.stem, node.originalname, node.callspec.params)
        if lacks and node.originalname in kind.unsteady:
            pytest.skip(f"fails now and then: {lacks}")
        if lacks:
            request.applymarker(pytest.mark.xfail(reason=lacks, strict=True))
        return _server_of(request.param)

    return take


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    directory, (port,) = tmp_path_factory.mktemp("redis"), free_ports(1)
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    log = directory / "redis.log"
    process = spawn(command, log, environment(), directory, signal.SIGKILL)
    try:
        if not wait_until(lambda: _listens(port), process, 10.0):
            pytest.fail(f"redis-server did not come up:\n{tail(log)}")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop(process, 0.0)


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not installed():
        pytest.skip("rabbitmq-server is not installed")
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def _session_proxy(seaweed: SeaweedFS) -> Iterator[Proxy]:
    with Proxy(seaweed) as proxy:
        yield proxy


@pytest.fixture
def proxy(_session_proxy: Proxy) -> Iterator[Proxy]:
    _session_proxy.restore()
    yield _session_proxy
    _session_proxy.restore()


@pytest.fixture
def proxy_for() -> Iterator[Callable[..., Proxy]]:
    with ExitStack() as stack:
        yield lambda server, **options: stack.enter_context(Proxy(server, **options))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The PEM files of a self-signed certificate for 127.0.0.1 and of its key."""
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "celery-s3 tests")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")


# -- what a test has for itself


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}/"


@pytest.fixture
def fresh_bucket() -> Iterator[Callable[[S3Server], str]]:
    with ExitStack() as stack:

        def make(server: S3Server) -> str:
            name = f"bucket-{uuid.uuid4().hex[:12]}"
            assert server.answers("PUT", f"/{name}")
            stack.callback(server.answers, "DELETE", f"/{name}")
            return name

        yield make


@pytest.fixture
def settings_for(prefix: str) -> Callable[..., Settings]:
    def make(server: S3Server, **overrides: Any) -> Settings:
        values = {
            "bucket": server.bucket,
            "base": prefix,
            "region": server.region,
            "endpoint_url": server.endpoint_url,
            "access_key_id": Secret(server.access_key),
            "secret_access_key": Secret(server.secret_key),
        }
        return Settings(**(values | overrides))

    return make


@pytest.fixture
def no_files_in_use() -> Iterator[None]:
    used, sending = whose.last_used.set(None), whose.sending.set((None, None))
    yield
    whose.last_used.reset(used)
    whose.sending.reset(sending)


@pytest.fixture
def broker_conf(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    def conf(name: str) -> dict[str, Any]:
        if name == "sqs":
            return request.getfixturevalue("sqs").broker()
        if name in ("redis", "rabbitmq"):
            return {"broker_url": request.getfixturevalue(f"{name}_url")}
        return _filesystem_broker(tmp_path / "broker") if name == "filesystem" else {"broker_url": "memory://"}

    return conf


@pytest.fixture(scope="session", autouse=True)
def _whole_messages() -> Iterator[None]:
    """Kombu's filesystem transport writes a message where a worker may read it half, which ends that worker."""

    def put(channel: Any, queue: str, payload: Any, **_: Any) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        target = Path(channel.data_folder_out) / name
        unfinished = target.with_suffix(".part")
        unfinished.write_text(json.dumps(payload))
        unfinished.rename(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem.Channel, "_put", put)
        yield


def _filesystem_broker(folder: Path) -> dict[str, Any]:
    for name in ("queue", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    queue, control = str(folder / "queue"), str(folder / "control")
    options = {"data_folder_in": queue, "data_folder_out": queue, "control_folder": control, "polling_interval": 0.05}
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": options,
        "worker_enable_remote_control": False,
    }


@pytest.fixture
def make_app(prefix: str, broker_conf: Callable[[str], dict[str, Any]]) -> Iterator[Callable[..., Celery]]:
    """Apps that share the test's prefix; ``s3_backend_settings`` given in ``conf`` is merged into the server's."""
    with ExitStack() as stack:

        def make(server: S3Server, broker: str = "memory", **conf: Any) -> Celery:
            name = f"app-{uuid.uuid4().hex[:12]}"
            backend_settings = server.settings() | {"base_path": prefix} | conf.pop("s3_backend_settings", {})
            values = {
                "result_backend": "celery_s3.backends.S3Backend",
                "s3_backend_settings": backend_settings,
                "task_default_queue": name,
                **broker_conf(broker),
                **conf,
            }
            app = Celery(name, set_as_current=False)
            app.conf.update(values)
            app.test_conf = values
            # else every app that another test makes later gets the tasks of this one as well
            app.task = partial(app.task, shared=False)
            stack.callback(app.close)
            app._get_backend = partial(_closed_at_the_end, app._get_backend, stack)
            return app

        yield make


def _closed_at_the_end(get_backend: Callable[[], Any], stack: ExitStack) -> Any:
    """A backend, whose threads and connections end with the test: they would ask for more during the next one."""
    backend = get_backend()
    if hasattr(backend, "close"):
        stack.callback(backend.close)
    return backend


# -- a real worker


class Worker:
    """A ``celery worker`` in a process group of its own.

    Attributes:
        pid: of the main process, which is also the process group's id.
    """

    def __init__(self, process: Forked | subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    @property
    def log(self) -> str:
        """Everything that worker and tasks have printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def children(self) -> list[int]:
        """The process ids of the pool."""
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = (map(int, line.split()) for line in table.splitlines())
        return [pid for pid, parent in pairs if parent == self.pid]

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Wait until the log holds ``text``."""
        if not wait_until(lambda: text in self.log, self._process, timeout):
            pytest.fail(f"the worker's log has no {text!r}:\n{self.log}")

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the main process alone."""
        os.kill(self.pid, signum)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait(timeout)

    def end(self) -> None:
        """Kill the whole group, whatever is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="session")
def run_celery() -> Iterator[Callable[..., Forked | subprocess.Popen[bytes]]]:
    """``run_celery(arguments, log, env, cwd, own=False)``: in a fork, or in an interpreter of its own."""
    with ExitStack() as stack:
        nursery = cache(lambda: stack.enter_context(closing(Nursery())))

        def run(
            arguments: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path, own: bool = False
        ) -> Forked | subprocess.Popen[bytes]:
            if own:
                return spawn([sys.executable, "-m", "celery", *arguments], log, env, cwd, signal.SIGKILL)
            return nursery().start(arguments, log, env, cwd)

        yield run


@pytest.fixture
def worker(tmp_path: Path, run_celery: Callable[..., Any]) -> Iterator[Callable[..., Worker]]:
    """Starts workers that end with the test.

    The tasks file makes its app from :data:`CONF_VARIABLE`, so that it has the configuration of the test's::

        app = Celery("tasks")
        app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))
    """
    with ExitStack() as stack:

        def start(
            app: Celery,
            tasks: str | os.PathLike[str],
            pool: str = "prefork",
            concurrency: int = 2,
            args: Sequence[str] = (),
            env: Mapping[str, str] | None = None,
        ) -> Worker:
            module = Path(tasks).resolve()
            name = f"worker-{uuid.uuid4().hex[:8]}"
            command = ["-A", module.stem, "worker", "--loglevel=INFO"]
            command += [f"--pool={pool}", f"--concurrency={concurrency}", f"--hostname={name}@localhost"]
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *args]
            # the tests' own AWS_* settings, not those that a server's child would get
            variables = {**os.environ, "PYTHONPATH": str(module.parent), CONF_VARIABLE: json.dumps(app.test_conf)}
            log = tmp_path / f"{name}.log"
            # greenlets patch what is imported: too late where it is used already
            process = run_celery(
                command, log, variables | dict(env or {}), module.parent, pool in ("gevent", "eventlet")
            )
            one = Worker(process, log)
            stack.callback(one.end)
            one.wait_for(" ready.")
            return one

        yield start


@pytest.fixture
def eventually() -> Callable[..., Any]:
    def wait(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"still not so after {timeout} s")
            time.sleep(0.02)
        return value

    return wait
