"""The proxy, in front of a small HTTP server that says what it saw."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from celery_s3.dev.process import S3Server
from devtools.proxy import Proxy
from devtools.proxy.faults import ANSWERS, Fault, Faults
from devtools.proxy.operations import operation

BIG = 3_000_000


class Handler(BaseHTTPRequestHandler):
    """Stores bodies by path; ``/chunked``, ``/endless`` and ``/early`` answer in other ways."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stored: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[list[dict[str, str]]] = []

    def do_PUT(self):
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.stored[self.path] = self._body()
        self._answer(200, b"")

    def do_GET(self):
        if self.path == "/chunked":
            self._chunked()
        elif self.path == "/endless":
            self._endless()
        else:
            self._answer(200 if self.path in self.stored else 404, self.stored.get(self.path, b"missing"))

    def do_HEAD(self):
        self._answer(200, b"x" * 1000)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (b"one", b"t" * 70_000, b"three"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"until the connection ends")
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def module_proxy(upstream):
    with Proxy(upstream) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy):
    Handler.stored.clear()
    Handler.seen.clear()
    module_proxy.restore()
    return module_proxy


@pytest.fixture
def connection(proxy):
    one = http.client.HTTPConnection(urlsplit(proxy.endpoint_url).netloc, timeout=10)
    yield one
    one.close()


def ask(connection, method, path, body=None, headers=None):
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


class TestRelaying:
    def test_one_connection_carries_many_requests(self, connection, proxy):
        """Bodies pass unchanged in both directions, on a connection that is kept."""
        ask(connection, "PUT", "/b/key", b"value")
        first = connection.sock
        assert ask(connection, "GET", "/b/key") == (200, b"value")
        assert ask(connection, "GET", "/b/none") == (404, b"missing")
        assert connection.sock is first

    def test_the_host_header_is_the_clients(self, connection, proxy):
        """The server sees the host that the client asked, or signatures would break."""
        ask(connection, "PUT", "/b/key", b"x")
        assert Handler.seen[-1]["host"] == urlsplit(proxy.endpoint_url).netloc

    def test_big_bodies(self, connection, proxy):
        """Megabytes pass in both directions, and are counted."""
        body = bytes(range(256)) * (BIG // 256)
        ask(connection, "PUT", "/b/big", body)
        assert ask(connection, "GET", "/b/big") == (200, body)
        assert [(r.sent, r.received) for r in proxy.records()] == [(len(body), 0), (0, len(body))]

    def test_big_bodies_with_a_delay(self, connection, proxy):
        """A delayed answer loses nothing, however large."""
        body = bytes(range(256)) * (BIG // 256)
        ask(connection, "PUT", "/b/big", body)
        proxy.configure(delay=0.05)
        assert ask(connection, "GET", "/b/big") == (200, body)

    def test_chunked_bodies(self, connection, proxy):
        """Chunked requests and answers keep their framing, and the connection survives them."""
        ask(connection, "PUT", "/b/key", iter([b"a" * 10, b"b" * 70_000]))
        assert Handler.stored["/b/key"] == b"a" * 10 + b"b" * 70_000
        assert ask(connection, "GET", "/chunked") == (200, b"one" + b"t" * 70_000 + b"three")
        assert ask(connection, "GET", "/b/none") == (404, b"missing")

    def test_an_answer_without_a_length(self, connection, proxy):
        """A body that ends with the server's connection passes whole."""
        assert ask(connection, "GET", "/endless") == (200, b"until the connection ends")

    def test_head(self, connection, proxy):
        """An answer to HEAD has a length and no body; the next request is not confused by it."""
        assert ask(connection, "HEAD", "/b/key") == (200, b"")
        assert ask(connection, "GET", "/b/none") == (404, b"missing")

    def test_expect_100_continue(self, proxy):
        """The server's 100 reaches the client at once, even where answers are delayed."""
        proxy.configure(delay=0.2)
        with raw(proxy) as peer:
            peer.sendall(b"PUT /b/key HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 100 ")
            peer.sendall(b"body")
            assert peer.recv(100).startswith(b"HTTP/1.1 200 ")
        assert Handler.stored["/b/key"] == b"body"

    def test_pipelined_requests(self, proxy):
        """Requests sent without waiting are answered in their order."""
        Handler.stored.update({"/b/1": b"first", "/b/2": b"second"})
        with raw(proxy) as peer:
            peer.sendall(b"".join(b"GET /b/%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in (1, 2)))
            answers = b""
            while b"second" not in answers:
                answers += peer.recv(4096)
        assert answers.index(b"first") < answers.index(b"second")

    def test_request_in_single_bytes(self, proxy):
        """It does not matter how a request is cut into packets."""
        with raw(proxy) as peer:
            for byte in b"PUT /b/slow HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc":
                peer.sendall(bytes([byte]))
            assert peer.recv(100).startswith(b"HTTP/1.1 200 ")
        assert Handler.stored["/b/slow"] == b"abc"

    def test_delay(self, connection, proxy):
        """No answer comes before the delay has passed."""
        proxy.configure(delay=0.15)
        begin = time.monotonic()
        ask(connection, "GET", "/b/key")
        assert time.monotonic() - begin >= 0.15

    def test_unreachable_server_resets(self):
        """Without a server behind it the client sees a broken connection, not silence."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            with Proxy(f"http://127.0.0.1:{closed.getsockname()[1]}") as proxy:
                assert not proxy.answers("GET", "/b/key")


class TestCounting:
    def test_counts_by_operation_and_method(self, connection, proxy):
        """Every request is counted once, by what it is to S3."""
        ask(connection, "PUT", "/b/key", b"x")
        ask(connection, "GET", "/b?list-type=2&prefix=a%2Fb")
        ask(connection, "GET", "/b/key")
        assert proxy.counts() == {"PUT": 1, "LIST": 1, "GET": 1}
        assert proxy.methods() == {"PUT": 1, "GET": 2}
        proxy.reset()
        assert (proxy.counts(), proxy.records(), proxy.peak()) == ({}, [], 0)

    def test_records_keep_what_matters_and_no_secret(self, connection, proxy):
        """A record has preconditions, range and the signature's region; the signature and tokens are not in it."""
        scope = "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-3/s3/aws4_request, SignedHeaders=host, Signature=5e"
        headers = {"If-None-Match": "*", "Range": "bytes=0-9", "Authorization": scope}
        headers |= {"x-amz-security-token": "TOPSECRET", "x-amz-storage-class": "STANDARD", "Cookie": "c"}
        ask(connection, "PUT", "/b/key", b"12345", headers)
        (record,) = proxy.records()
        assert (record.method, record.target, record.kind, record.status) == ("PUT", "/b/key", "PUT", 200)
        assert (record.sent, record.received, record.fault) == (5, 0, "")
        expected = {"if-none-match": "*", "range": "bytes=0-9", "region": "eu-west-3"}
        expected |= {"x-amz-storage-class": "STANDARD", "x-amz-security-token": "********"}
        assert expected.items() <= record.headers.items()
        assert not {"cookie", "authorization"} & set(record.headers)
        assert "TOPSECRET" not in repr(record)

    def test_peak(self, proxy):
        """The peak is the number of requests that were under way at once."""
        proxy.configure(delay=0.3)
        threads = [threading.Thread(target=proxy.answers, args=("GET", "/b/key")) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert proxy.peak() == 5


class TestFaults:
    @pytest.mark.parametrize("how", sorted(ANSWERS))
    def test_answer_in_the_servers_place(self, connection, proxy, how):
        """The fault's answer comes, the server sees nothing, and the next request passes."""
        status, code, _ = ANSWERS[how]
        proxy.fail("PUT", how)
        got, body = ask(connection, "PUT", "/b/key", b"x" * 100_000)
        assert got == status
        assert f"<Code>{code}</Code>".encode() in body if code else body == b""
        assert Handler.stored == {}
        assert ask(connection, "PUT", "/b/key", b"x") == (200, b"")
        assert [(r.status, r.fault) for r in proxy.records()] == [(status, how), (200, "")]

    def test_answer_after_the_write(self, connection, proxy):
        """``…_after``: the server has carried the request out; its answer is lost."""
        proxy.fail("PUT", "internal_error_after")
        assert ask(connection, "PUT", "/b/key", b"x")[0] == 500
        assert Handler.stored == {"/b/key": b"x"}

    @pytest.mark.parametrize(("how", "stored"), [("reset", {}), ("reset_after", {"/b/key": b"x"})])
    def test_reset(self, connection, proxy, how, stored):
        """The connection breaks before or after the server has carried the request out."""
        proxy.fail("PUT", how)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(connection, "PUT", "/b/key", b"x")
        assert Handler.stored == stored
        assert proxy.records()[0].status == 0

    @pytest.mark.parametrize(("how", "stored"), [("hang", {}), ("hang_after", {"/b/key": b"x"})])
    def test_hang(self, proxy, how, stored):
        """No answer comes, whether or not the server has carried the request out."""
        proxy.fail("PUT", how)
        with raw(proxy, timeout=0.3) as peer:
            peer.sendall(b"PUT /b/key HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
            with pytest.raises(TimeoutError):
                peer.recv(1)
        assert Handler.stored == stored

    def test_hang_ends(self, connection, proxy):
        """A hang is over after its seconds: the connection is reset."""
        proxy.fail("GET", "hang", seconds=0.1)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(connection, "GET", "/b/key")

    def test_truncated_body(self, connection, proxy):
        """Half of the body comes, then the connection ends."""
        Handler.stored["/b/key"] = b"0123456789"
        proxy.fail("GET", "truncate")
        connection.request("GET", "/b/key")
        with pytest.raises(http.client.IncompleteRead) as caught:
            connection.getresponse().read()
        assert caught.value.partial == b"01234"

    def test_altered_body(self, connection, proxy):
        """One bit of the body comes as another; what has no body comes as it is."""
        Handler.stored["/b/key"] = b"0123456789"
        proxy.fail("*", "alter", times=2)
        assert ask(connection, "GET", "/b/key")[1] == b"0123446789"
        assert ask(connection, "GET", "/b/none")[0] == 404

    def test_slow_body(self, connection, proxy):
        """The head comes at once, the body's end only after the given time; nothing is lost."""
        Handler.stored["/b/key"] = b"0123456789" * 10
        proxy.fail("GET", "slow_body", seconds=0.3)
        begin = time.monotonic()
        assert ask(connection, "GET", "/b/key") == (200, b"0123456789" * 10)
        assert time.monotonic() - begin >= 0.25

    def test_expect_100_continue_is_answered_for_a_withheld_request(self, proxy):
        """A client that waits for 100 gets it, then the injected answer."""
        proxy.fail("PUT", "slow_down")
        with raw(proxy) as peer:
            peer.sendall(b"PUT /b/key HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            peer.sendall(b"body")
            assert peer.recv(100).startswith(b"HTTP/1.1 503 ")

    def test_down_and_up(self, connection, proxy):
        """While it is down connections are refused; afterwards the same URL works again."""
        ask(connection, "GET", "/b/key")
        address = ("127.0.0.1", urlsplit(proxy.endpoint_url).port)
        with proxy.down():
            with pytest.raises(ConnectionError):
                connection.sock.recv(1)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        socket.create_connection(address).close()

    def test_heal(self, connection, proxy):
        """Faults for ever last until they are taken back."""
        proxy.fail("GET", "slow_down", times=-1)
        assert [ask(connection, "GET", "/b/key")[0] for _ in range(3)] == [503] * 3
        proxy.heal()
        assert ask(connection, "GET", "/b/key")[0] == 404

    def test_unknown_fault(self, proxy):
        """A misspelt fault is refused, with the names that there are."""
        with pytest.raises(ValueError, match="slow_down"):
            proxy.fail("PUT", "slowdown")

    def test_preconditions_stripped(self, connection, proxy):
        """The server does not see If-Match and If-None-Match; the record does."""
        proxy.configure(strip_preconditions=True)
        ask(connection, "PUT", "/b/key", b"x", {"If-None-Match": "*", "If-Match": '"e"', "X-Other": "1"})
        assert not {"if-none-match", "if-match"} & set(Handler.seen[-1])
        assert Handler.seen[-1]["x-other"] == "1"
        assert proxy.records()[0].headers["if-none-match"] == "*"


class TestWhichRequestIsHit:
    @pytest.mark.parametrize(
        ("match", "hit"),
        [("PUT", True), ("*", True), ("PUT key", True), ("* key", True), ("GET", False), ("PUT other", False)],
    )
    def test_match(self, match, hit):
        """A fault names a method or an operation, then perhaps a part of the path."""
        assert Fault(match, "reset").fits("PUT", "PUT", "/b/key") is hit

    def test_operation(self):
        """LIST is told from GET."""
        assert Fault("LIST", "reset").fits("GET", "LIST", "/b?list-type=2")

    def test_after_and_times(self):
        """``after`` requests pass, then ``times`` are hit."""
        faults = Faults()
        faults.add(Fault("PUT", "reset", times=2, after=1))
        hits = [faults.pick("PUT", "PUT", "/b/k") is not None for _ in range(5)]
        assert hits == [False, True, True, False, False]


class TestEnds:
    def test_tls(self, upstream, certificate):
        """With a certificate the proxy speaks HTTPS."""
        cert, key = certificate
        with Proxy(upstream, tls=(cert, key)) as proxy:
            assert proxy.endpoint_url.startswith("https://")
            netloc = urlsplit(proxy.endpoint_url).netloc
            trusting = http.client.HTTPSConnection(netloc, context=ssl.create_default_context(cafile=cert), timeout=10)
            assert ask(trusting, "GET", "/b/none") == (404, b"missing")
            trusting.close()
            doubting = http.client.HTTPSConnection(netloc, timeout=10)
            with pytest.raises(ssl.SSLCertVerificationError):
                ask(doubting, "GET", "/b/none")

    def test_ends_with_its_parent(self, upstream):
        """A program that is killed leaves no proxy behind."""
        code = (
            "import os, sys\nfrom devtools.proxy import Proxy\n"
            f"print(Proxy({upstream!r}).start().endpoint_url, flush=True)\nos._exit(9)"
        )
        url = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        address = ("127.0.0.1", urlsplit(url).port)
        deadline = time.monotonic() + 5
        while _listens(address):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_needs_http(self):
        """An upstream that is not an http URL is refused at once."""
        with pytest.raises(ValueError, match="http://"):
            Proxy("https://s3.amazonaws.com")

    def test_needs_a_start(self):
        """A proxy that does not run says so."""
        with pytest.raises(RuntimeError, match="not running"):
            Proxy("http://127.0.0.1:1").counts()


class TestOperations:
    @pytest.mark.parametrize(
        ("method", "target", "kind"),
        [
            ("PUT", "/b/key", "PUT"),
            ("GET", "/b/a/b?x=1", "GET"),
            ("HEAD", "/b/key", "HEAD"),
            ("DELETE", "/b/key", "DELETE"),
            ("GET", "/b?list-type=2", "LIST"),
            ("GET", "/b/?prefix=p", "LIST"),
            ("POST", "/b?delete", "DeleteObjects"),
            ("POST", "/b/?delete=", "DeleteObjects"),
            ("PUT", "/b", "CreateBucket"),
            ("HEAD", "/b", "HeadBucket"),
            ("DELETE", "/b/", "DeleteBucket"),
            ("PUT", "/b?lifecycle", "PutBucketLifecycle"),
            ("GET", "/b?location", "GetBucketLocation"),
            ("GET", "/", "ListBuckets"),
            ("POST", "/b/key?uploads", "CreateMultipartUpload"),
            ("PUT", "/b/key?partNumber=1&uploadId=u", "UploadPart"),
            ("POST", "/b/key?uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/key?uploadId=u", "AbortMultipartUpload"),
            ("PUT", "/b/key?tagging", "PutObjectTagging"),
        ],
    )
    def test_operation(self, method, target, kind):
        """A request's method, path and query say which S3 operation it is."""
        assert operation(method, target, {}) == kind

    def test_copy(self):
        """A PUT with a source is a copy."""
        assert operation("PUT", "/b/key", {"x-amz-copy-source": "/b/other"}) == "COPY"


def raw(proxy: S3Server, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint_url).port), timeout=timeout)


def _listens(address) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0
