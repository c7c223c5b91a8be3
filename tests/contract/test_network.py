"""Proxies and certificates: the same through both clients, by the rules of docs/network.md."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from scripted import Answer, ScriptedServer, stored

from celery_s3.errors import BadRequest, ConfigurationError, StoreError, TLSFailure, Unreachable
from celery_s3.settings import Settings, resolve
from celery_s3.settings.network import CA_VARIABLES, PROXY_VARIABLES
from celery_s3.store.api import Store

Opened = Callable[..., Store]

VARIABLES = (*PROXY_VARIABLES.values(), "no_proxy")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *map(str.upper, VARIABLES), *CA_VARIABLES, "AWS_CA_BUNDLE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def between() -> Iterator[ScriptedServer]:
    """A proxy: what it is sent it answers itself."""
    with ScriptedServer() as proxy:
        proxy.answer = stored(b"by the proxy")
        yield proxy


def settings_of(endpoint_url: str, **given: Any) -> Settings:
    """The settings that an application's words and the environment mean."""
    named = {"bucket": "scripted", "endpoint_url": endpoint_url, "connect_timeout": 2.0, "read_timeout": 5.0}
    keys = {"aws_access_key_id": "AKSCRIPTED", "aws_secret_access_key": "a-secret-of-the-test"}
    app = Celery("tests", set_as_current=False)
    app.conf.s3_backend_settings = named | keys | given
    return resolve(app)


@pytest.fixture
def opened(client_name: str, open_client: Any) -> Opened:
    """A client of a server at this URL; settings may be given."""
    return lambda endpoint_url, **given: open_client(client_name, settings_of(endpoint_url, **given))


#: What the environment says, and whether http://127.0.0.1:PORT, http://localhost:PORT and https://127.0.0.1:PORT are
#: reached through the proxy then. ``{proxy}`` is ``127.0.0.1:port`` of the proxy, ``{port}`` the server's port.
CASES: list[tuple[Mapping[str, str], str]] = [
    ({}, "- - -"),
    ({"HTTP_PROXY": "http://{proxy}"}, "http localhost -"),
    ({"http_proxy": "http://{proxy}"}, "http localhost -"),
    ({"HTTPS_PROXY": "http://{proxy}"}, "- - https"),
    ({"ALL_PROXY": "http://{proxy}"}, "http localhost https"),
    ({"all_proxy": "{proxy}"}, "http localhost https"),
    ({"HTTP_PROXY": "{proxy}/"}, "http localhost -"),
    # lower case is stronger, even if empty
    ({"http_proxy": "", "HTTP_PROXY": "http://{proxy}"}, "- - -"),
    ({"http_proxy": "http://{proxy}", "HTTP_PROXY": "http://127.0.0.1:1"}, "http localhost -"),
    # a header of whoever calls a CGI script
    ({"HTTP_PROXY": "http://{proxy}", "REQUEST_METHOD": "GET"}, "- - -"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "*"}, "- - -"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "127.0.0.0/8"}, "- localhost -"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "10.0.0.0/8, 127.0.0.1"}, "- localhost -"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "127.0.0.1:{port}"}, "- localhost -"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "127.0.0.1:1"}, "http localhost https"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "localhost"}, "http - https"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "LOCALHOST:{port}"}, "http - https"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": ".localhost"}, "http - https"),
    ({"ALL_PROXY": "http://{proxy}", "NO_PROXY": "calhost,0.1,not/a/network"}, "http localhost https"),
    ({"ALL_PROXY": "http://{proxy}", "no_proxy": "", "NO_PROXY": "localhost"}, "http - https"),
    ({"HTTP_PROXY": "http://{proxy}", "ALL_PROXY": "socks5://127.0.0.1:1"}, "http localhost refused"),
    ({"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "127.0.0.1,localhost"}, "- - -"),
]


def reached(opened: Opened, url: str, script: ScriptedServer, between: ScriptedServer) -> str:
    """Where a GET arrives."""
    between.requests.clear()
    script.requests.clear()
    if url.startswith("https:"):  # neither speaks TLS
        between.answer, script.greeting = Answer(502), b"HTTP/1.1 400 Bad Request\r\n\r\n"
    try:
        opened(url).get("k")
    except ConfigurationError:
        return "refused"
    except StoreError:
        assert url.startswith("https:")
    if not between.requests:
        return "-"
    assert not script.requests
    parts = urlsplit(url)
    asked = between.requests[0]
    assert (asked.method, asked.target) == (
        ("CONNECT", parts.netloc) if parts.scheme == "https" else ("GET", f"{url}/scripted/k")
    )
    return "https" if parts.scheme == "https" else parts.hostname.replace("127.0.0.1", "http")


@pytest.mark.parametrize(("said", "expected"), CASES, ids=lambda case: str(case)[:90])
def test_the_environments_proxies(
    script: ScriptedServer,
    between: ScriptedServer,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    said: Mapping[str, str],
    expected: str,
) -> None:
    """One rule for both clients: requests' variables, and NO_PROXY by name, address, network, port and ``*``.

    All three URLs are asked of the settings, one of them is sent a request.
    """
    script.answer = stored(b"by the server")
    port = urlsplit(script.endpoint_url).port
    for name, value in said.items():
        monkeypatch.setenv(name, value.format(proxy=urlsplit(between.endpoint_url).netloc, port=port))
    urls = [f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"https://127.0.0.1:{port}"]
    for url, name, expects in zip(urls, ["http", "localhost", "https"], expected.split(), strict=True):
        if expects == "refused":
            with pytest.raises(ConfigurationError, match="SOCKS"):
                settings_of(url)
        else:
            assert (settings_of(url).proxies.to(url) is not None) == (expects == name)
    asked = CASES.index((said, expected)) % 3
    assert reached(opened, urls[asked], script, between) == expected.split()[asked]


@pytest.mark.parametrize("scheme", ["http", "all"])
def test_proxies_of_the_settings(
    script: ScriptedServer, between: ScriptedServer, opened: Opened, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """`proxies` is stronger than the environment as a whole, its exceptions too; ``{}`` is none."""
    script.answer = stored(b"by the server")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    given = {scheme: between.endpoint_url}
    assert opened(script.endpoint_url, proxies=given).get("k").body == b"by the proxy"
    monkeypatch.delenv("NO_PROXY")
    assert opened(script.endpoint_url, proxies={}).get("k").body == b"by the server"
    assert opened(script.endpoint_url, proxies={"https": between.endpoint_url}).get("k").body == b"by the server"


def test_user_and_password_of_a_proxy(script: ScriptedServer, between: ScriptedServer, opened: Opened) -> None:
    """They are sent to the proxy, decoded."""
    netloc = urlsplit(between.endpoint_url).netloc
    opened(script.endpoint_url, proxies={"all": f"http://us%40er:p%3Aw@{netloc}"}).get("k")
    assert between.requests[0].headers["proxy-authorization"] == "Basic dXNAZXI6cDp3"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
def test_an_error_names_the_proxy(opened: Opened, url: str) -> None:
    """Where a proxy may be the cause, the error names it and who named it, and holds no password."""
    store = opened(url, proxies={"all": "http://someone:pa%2Fss-word@127.0.0.1:1"})
    with pytest.raises(Unreachable, match=r"through the proxy http://127\.0\.0\.1:1 \(`proxies`\)") as raised:
        store.get("k")
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value.__cause__)
    assert "ss-word" not in told


@pytest.mark.parametrize(("status", "says"), [(407, "asks for user and password"), (404, "is not S3's")])
def test_a_proxys_own_answer(
    script: ScriptedServer, between: ScriptedServer, opened: Opened, monkeypatch: Any, status: int, says: str
) -> None:
    """What a proxy answers in place of the server is not taken for the server's."""
    monkeypatch.setenv("HTTP_PROXY", between.endpoint_url)
    between.answer = Answer(status, b"<html>no</html>", {"Content-Type": "text/html"})
    with pytest.raises(BadRequest, match=rf"{says}.*through the proxy http://127.*\(HTTP_PROXY\)"):
        opened(script.endpoint_url).get("k")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("socks5://127.0.0.1:1", "SOCKS"),
        ("http://user@127.0.0.1:1", "give both or neither"),
        ("http://us er:secret@127.0.0.1", "is not a proxy's URL"),
        ("http://user:s@ecret:xx@", "is not a proxy's URL"),
        (3128, "must be text"),
    ],
)
def test_a_proxy_that_a_client_could_not_use(value: object, says: str) -> None:
    """It is refused for both, in the settings and in the environment, without its password."""
    with pytest.raises(ConfigurationError, match=says) as raised:
        settings_of("http://127.0.0.1:9", proxies={"http": value})
    assert "ecret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="a dict of"):
        settings_of("http://127.0.0.1:9", proxies={"ftp": "http://127.0.0.1:1"})


def test_the_pages_settings() -> None:
    """The example of docs/network.md, as it is printed."""
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    app = Celery("tests", set_as_current=False)
    exec(page.partition("```python\n")[2].partition("```")[0], {"app": app})
    proxy = resolve(app).proxies.to("https://my-bucket.s3.us-east-1.amazonaws.com")
    assert str(proxy) == "http://proxy.example.com:3128 (`proxies`)"
    assert "password" not in repr(resolve(app))


# -- certificates


@pytest.fixture
def tls(certificate: tuple[str, str]) -> Iterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ScriptedServer(context) as server:
        server.answer = stored(b"x")
        yield server


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle that vouches for others: Mozilla's, in a file of its own."""
    import certifi

    file: Path = tmp_path_factory.mktemp("ca") / "others.pem"
    file.write_bytes(Path(certifi.where()).read_bytes())
    return str(file)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", *CA_VARIABLES])
def test_the_environments_certificates(
    tls: ScriptedServer, certificate: tuple[str, str], opened: Opened, monkeypatch: Any, variable: str
) -> None:
    """Each variable of AWS, requests, curl and OpenSSL is enough, for either client."""
    monkeypatch.setenv(variable, certificate[0])
    assert opened(tls.endpoint_url).get("k").body == b"x"


#: strongest first
RANKS = ("verify", "AWS_CA_BUNDLE", *CA_VARIABLES)


@pytest.mark.parametrize("strong", range(len(RANKS) - 1))
def test_one_bundle_takes_the_place_of_all_others(
    tls: ScriptedServer, certificate: tuple[str, str], other: str, opened: Opened, monkeypatch: Any, strong: int
) -> None:
    """The strongest that is named pins: what a weaker one would vouch for is refused, by either client."""
    for name in RANKS[strong + 1 :]:
        monkeypatch.setenv(name, certificate[0])
    given = {}
    if strong:
        monkeypatch.setenv(RANKS[strong], other)
    else:
        given["verify"] = other
    with pytest.raises(TLSFailure):
        opened(tls.endpoint_url, **given).get("k")
    assert tls.requests == []


def test_a_folder_of_certificates_is_for_openssl_alone(
    tls: ScriptedServer, certificate: tuple[str, str], opened: Opened, monkeypatch: Any
) -> None:
    """boto3 cannot be told SSL_CERT_DIR: obstore does not follow it either."""
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(certificate[0]).parent))
    with pytest.raises(TLSFailure):
        opened(tls.endpoint_url).get("k")


def test_a_variable_that_names_no_file(monkeypatch: Any) -> None:
    """It is a mistake, unless something stronger has been said."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(ConfigurationError, match="REQUESTS_CA_BUNDLE: there is no file"):
        settings_of("https://127.0.0.1:9")
    assert settings_of("https://127.0.0.1:9", verify=True).verify is True
