"""Whatever goes wrong between us and a server is the same error of ours through both clients."""

from __future__ import annotations

import inspect
import pickle
import socket
import ssl
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.exceptions
import obstore.exceptions
import pytest
from scripted import Answer, ScriptedServer, error, stored

from celery_s3 import errors
from celery_s3.errors import (
    AccessDenied,
    BadCredentials,
    BadRequest,
    BucketMissing,
    Conflict,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    ServerFault,
    StoreError,
    Throttled,
    TLSFailure,
    Unreachable,
    WrongRegion,
)
from celery_s3.settings import Secret, Settings
from celery_s3.store.api import CREATE, Match, Store
from celery_s3.store.clients import boto3_errors, obstore_errors
from celery_s3.store.requests import DeleteMany

Verb = Callable[[Store], object]

VERBS: dict[str, Verb] = {
    "get": lambda store: store.get("k"),
    "range": lambda store: store.get("k", length=100),
    "version": lambda store: store.get("k", if_match='"e1"'),
    "put": lambda store: store.put("k", b"x"),
    "create": lambda store: store.put("k", b"x", precondition=CREATE),
    "replace": lambda store: store.put("k", b"x", precondition=Match('"e1"')),
    "delete": lambda store: store.delete("k"),
    "delete_many": lambda store: store.send(DeleteMany(["k", "l"])),
    "list": lambda store: list(store.list("p")),
}
READS, WRITES = ("get", "range", "version"), ("put", "create", "replace")
REGION = "<Region>eu-west-1</Region>"
HTML = Answer(404, b"<html><h1>It works!</h1></html>", {"Content-Type": "text/html"})

#: answer, what each verb raises
ANSWERS: dict[str, tuple[Answer, type[StoreError]]] = {
    "NoSuchBucket": (error(404, "NoSuchBucket"), BucketMissing),
    "not S3": (HTML, BadRequest),
    "409": (error(409, "ConditionalRequestConflict"), Conflict),
    "409 OperationAborted": (error(409, "OperationAborted"), Conflict),
    "409 without body": (Answer(409), Conflict),
    "412": (error(412, "PreconditionFailed"), PreconditionFailed),
    "412 without body": (Answer(412), PreconditionFailed),
    "AccessDenied": (error(403, "AccessDenied"), AccessDenied),
    "403 without body": (Answer(403), AccessDenied),
    # it is there, so it must never read as missing
    "403 of another code": (error(403, "InvalidObjectState"), BadRequest),
    "401": (error(401, "Unauthorized"), BadCredentials),
    "InvalidAccessKeyId": (error(403, "InvalidAccessKeyId"), BadCredentials),
    "SignatureDoesNotMatch": (error(403, "SignatureDoesNotMatch"), BadCredentials),
    "ExpiredToken": (error(400, "ExpiredToken"), BadCredentials),
    "InvalidToken": (error(400, "InvalidToken"), BadCredentials),
    "RequestTimeTooSkewed": (error(403, "RequestTimeTooSkewed"), BadCredentials),
    "malformed authorization": (error(400, "AuthorizationHeaderMalformed"), BadCredentials),
    "region": (error(400, "AuthorizationHeaderMalformed", extra=REGION), WrongRegion),
    "PermanentRedirect": (error(301, "PermanentRedirect", extra="<Endpoint>b.s3</Endpoint>"), WrongRegion),
    "301 without body": (Answer(301, headers={"x-amz-bucket-region": "eu-west-1"}), WrongRegion),
    "307": (error(307, "TemporaryRedirect"), WrongRegion),
    "IllegalLocation": (error(400, "IllegalLocationConstraintException"), WrongRegion),
    "400": (error(400, "InvalidRequest"), BadRequest),
    "400 without body": (Answer(400), BadRequest),
    "400 RequestTimeout": (error(400, "RequestTimeout"), Interrupted),
    "405": (error(405, "MethodNotAllowed"), BadRequest),
    "408": (Answer(408), Interrupted),
    "411": (Answer(411), BadRequest),
    "429": (error(429, "TooManyRequests"), Throttled),
    "429 without body": (Answer(429), Throttled),
    "SlowDown": (error(503, "SlowDown"), Throttled),
    "503 of another code": (error(503, "ServiceUnavailable"), ServerFault),
    "503 without body": (Answer(503), ServerFault),
    "500": (error(500, "InternalError"), ServerFault),
    "500 without body": (Answer(500), ServerFault),
    "501": (error(501, "NotImplemented"), BadRequest),
    "502": (Answer(502, b"<html>bad gateway</html>"), ServerFault),
    "504": (Answer(504), ServerFault),
    "reset": (Answer(fault="reset"), Interrupted),
    "half an error": (replace(error(404, "NoSuchKey"), fault="cut"), Interrupted),
}


def failure(store: Store, verb: Verb) -> StoreError:
    with pytest.raises(StoreError) as caught:
        verb(store)
    return caught.value


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(script: ScriptedServer, scripted: Callable[..., Store], case: str) -> None:
    """An answer means the same through both clients and for every verb, and is asked for once.

    A range that is refused as a bad request may reach past the end: then the whole is asked for.
    """
    script.answer, kind = ANSWERS[case]
    store = scripted()
    for name, verb in VERBS.items():
        script.requests.clear()
        raised = failure(store, verb)
        assert (name, type(raised)) == (name, kind)
        again = name == "range" and kind is BadRequest and script.answer.status == 400
        assert len(script.requests) == 1 + again
        assert raised.bucket == "scripted"
        assert raised.status in (script.answer.status, None if script.answer.fault or kind is WrongRegion else 0)
        assert raised.__cause__ is not None


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        *((verb, ObjectMissing) for verb in READS),
        ("put", BucketMissing),
        ("create", BucketMissing),
        ("replace", PreconditionFailed),
        ("delete_many", BucketMissing),
        ("list", BucketMissing),
    ],
)
@pytest.mark.parametrize("answer", [error(404, "NoSuchKey"), Answer(404)], ids=["NoSuchKey", "no body"])
def test_404(
    script: ScriptedServer, scripted: Callable[..., Store], verb: str, kind: type[StoreError], answer: Answer
) -> None:
    """What is missing is the object for a read, its version for a replacement, the bucket for anything else."""
    script.answer = answer
    assert type(failure(scripted(), VERBS[verb])) is kind


@pytest.mark.parametrize("answer", [error(404, "NoSuchKey"), Answer(404), Answer(204)], ids=["NoSuchKey", "404", "204"])
def test_delete_of_nothing(script: ScriptedServer, scripted: Callable[..., Store], answer: Answer) -> None:
    """One DELETE, whatever the server says of an object that is not there."""
    script.answer = answer
    scripted().delete("k")
    assert [(request.method, request.target) for request in script.requests] == [("DELETE", "/scripted/k")]


@pytest.mark.parametrize("verb", VERBS)
def test_time_out(script: ScriptedServer, scripted: Callable[..., Store], verb: str) -> None:
    """No answer within ``read_timeout`` is Interrupted."""
    script.answer = Answer(fault="silence")
    assert type(failure(scripted(read_timeout=0.3, connect_timeout=0.2), VERBS[verb])) is Interrupted


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize("verb", ["get", "version"])
def test_half_a_body(script: ScriptedServer, scripted: Callable[..., Store], verb: str, fault: str) -> None:
    """A body that ends or stops before its length is Interrupted, never a short object."""
    script.answer = replace(stored(b"x" * 100_000), fault=fault)
    assert type(failure(scripted(read_timeout=0.3), VERBS[verb])) is Interrupted


@pytest.mark.parametrize("verb", WRITES)
def test_a_write_without_an_etag(script: ScriptedServer, scripted: Callable[..., Store], verb: str) -> None:
    """A 200 that names no version may or may not have been written."""
    script.answer = Answer(200)
    assert type(failure(scripted(), VERBS[verb])) is Interrupted


@pytest.mark.parametrize(
    ("code", "kind"), [("AccessDenied", AccessDenied), ("InternalError", ServerFault), ("SlowDown", Throttled)]
)
def test_errors_inside_of_a_deletion(
    script: ScriptedServer, scripted: Callable[..., Store], code: str, kind: type[StoreError]
) -> None:
    """An error for one key in a successful DeleteObjects is raised."""
    one = f"<Error><Key>l</Key><Code>{code}</Code><Message>no</Message></Error>"
    script.answer = Answer(200, f"<DeleteResult><Deleted><Key>k</Key></Deleted>{one}</DeleteResult>".encode())
    raised = failure(scripted(), VERBS["delete_many"])
    assert type(raised) is kind


def test_an_error_instead_of_a_deletion(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """A 200 whose body is an error is a fault of the server."""
    script.answer = Answer(200, error(200, "InternalError").body)
    assert type(failure(scripted(), VERBS["delete_many"])) is ServerFault


def test_a_server_without_ranges(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """A server that sends the whole object where a range was asked for is put up with."""
    script.answer = stored(b"0123456789")
    found = scripted().get("k", start=2, length=3)
    assert (found.body, found.size) == (b"234", 10)


# -- no connection


def _refused() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a host that does not answer to a SYN."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.mark.parametrize("verb", ["get", "create", "replace", "delete_many", "list"])
def test_connection_refused(scripted: Callable[..., Store], verb: str) -> None:
    """Where nobody listens nothing was sent."""
    assert type(failure(scripted(endpoint_url=_refused()), VERBS[verb])) is Unreachable


@pytest.mark.parametrize("verb", ["get", "create"])
def test_unknown_host(scripted: Callable[..., Store], verb: str) -> None:
    """A name that does not resolve, neither."""
    assert type(failure(scripted(endpoint_url="http://nothing.invalid"), VERBS[verb])) is Unreachable


@pytest.mark.parametrize("verb", ["get", "create"])
def test_no_connection_in_time(scripted: Callable[..., Store], deaf: str, verb: str) -> None:
    """A host that does not take the connection within ``connect_timeout``, neither."""
    store = scripted(endpoint_url=deaf, connect_timeout=0.3)
    assert type(failure(store, VERBS[verb])) is Unreachable


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    command += ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> Iterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ScriptedServer(context) as server:
        yield server


@pytest.mark.parametrize("verb", ["get", "create"])
def test_untrusted_certificate(tls: ScriptedServer, scripted: Callable[..., Store], verb: str) -> None:
    """A certificate that nobody vouches for is TLSFailure, and nothing is sent."""
    assert type(failure(scripted(endpoint_url=tls.endpoint_url), VERBS[verb])) is TLSFailure
    assert tls.requests == []


def test_no_tls_spoken(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """https to a port that answers in plain text is TLSFailure."""
    script.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    url = script.endpoint_url.replace("http:", "https:")
    assert type(failure(scripted(endpoint_url=url), VERBS["get"])) is TLSFailure


def test_ca_bundle(tls: ScriptedServer, certificate: tuple[Path, Path], scripted: Callable[..., Store]) -> None:
    """``verify`` names the bundle that vouches for the server."""
    tls.answer = stored(b"x")
    assert scripted(endpoint_url=tls.endpoint_url, verify=str(certificate[0])).get("k").body == b"x"


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verify_false(tls: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """``verify=False`` takes any certificate."""
    tls.answer = stored(b"x")
    assert scripted(endpoint_url=tls.endpoint_url, verify=False).get("k").body == b"x"


# -- secrets and text


TOKEN = "IQoJb3JpZ2luX2VjE-the-session-token"


@pytest.mark.parametrize("verb", ["get", "create", "delete_many", "list"])
@pytest.mark.parametrize("status", [400, 403])
def test_no_secret_is_repeated(script: ScriptedServer, scripted: Callable[..., Store], status: int, verb: str) -> None:
    """What S3 repeats of a refused request, token and all, reaches neither error nor cause nor traceback."""
    echo = f"<CanonicalRequest>GET\n/\n\nx-amz-security-token:{TOKEN}\nAKSCRIPTED</CanonicalRequest>"
    script.answer = error(status, "SignatureDoesNotMatch", f"it holds {TOKEN}", echo)
    store = scripted(session_token=Secret(TOKEN))
    raised = failure(store, VERBS[verb])
    assert type(raised) is BadCredentials
    told = "".join(traceback.format_exception(raised)) + repr(raised) + repr(raised.__cause__)
    told += repr(getattr(raised.__cause__, "response", "")) + repr(raised.__context__)
    for secret in (TOKEN, "a-secret-of-the-test"):
        assert secret not in told
    assert raised.__context__ is None


def test_the_echo_of_a_session_of_which_no_setting_knows(
    script: ScriptedServer, client_name: str, scripted_settings: Callable[..., Settings], open_client: Any
) -> None:
    """Nor does the echo of a token that the settings do not hold."""
    echo = f"<CanonicalRequest>x-amz-security-token:{TOKEN}</CanonicalRequest>"
    script.answer = error(403, "SignatureDoesNotMatch", "no match", echo)
    raised = failure(open_client(client_name, scripted_settings()), VERBS["get"])
    assert TOKEN not in "".join(traceback.format_exception(raised)) + repr(getattr(raised.__cause__, "response", ""))
    assert raised.detail == "no match"


@pytest.mark.parametrize(
    "key",
    ["status: 404,", "Server returned non-2xx status code: 412 Precondition Failed: ", "error: InvalidCertificate"],
)
def test_a_key_cannot_forge_an_answer(script: ScriptedServer, scripted: Callable[..., Store], key: str) -> None:
    """Only the server decides what its answer means."""
    script.answer = error(503, "SlowDown")
    assert type(failure(scripted(), lambda store: store.get(key))) is Throttled
    assert type(failure(scripted(endpoint_url=_refused()), lambda store: store.get(key))) is Unreachable


def test_a_message_cannot_forge_an_answer(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """A message that looks like the text of a client's error is a message."""
    forged = '\n\nDebug source:\n    status: 404,\n    body: Some(\n        "&lt;Code&gt;NoSuchKey",\n'
    script.answer = error(503, "SlowDown", forged)
    raised = failure(scripted(), VERBS["get"])
    assert (type(raised), raised.status, raised.code) == (Throttled, 503, "SlowDown")


def test_errors_tell_what_was_asked(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """An error has verb, key, status, code and the server's words, and survives pickling."""
    script.answer = error(403, "AccessDenied", "You &quot;may&quot; not")
    raised = failure(scripted(), VERBS["create"])
    assert str(raised).startswith(
        'put s3://scripted/k: access denied (403 AccessDenied): You "may" not. Allow these credentials'
    )
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)


# -- completeness


def _classes(module: Any) -> Iterator[type[BaseException]]:
    for _, found in inspect.getmembers(module, inspect.isclass):
        if (
            issubclass(found, Exception)
            and not issubclass(found, Warning)
            and found.__module__.startswith(module.__name__)
        ):
            yield found


def test_every_error_of_obstore_is_mapped() -> None:
    """A class that obstore grows must be given a meaning."""
    names = {found.__name__ for found in vars(obstore.exceptions).values() if inspect.isclass(found)}
    assert names - set(obstore_errors._KINDS) == set()


#: What botocore raises for parameters, models and configurations, which is BadRequest.
_OTHERS = """
    AliasConflictParameterError ApiVersionNotFoundError BaseEndpointResolverError BotoCoreError
    CapacityNotAvailableError DataNotFoundError EndpointProviderError EndpointResolutionError EndpointVariantError
    InvalidChecksumConfigError InvalidDNSNameError InvalidDefaultsMode InvalidEndpointConfigurationError
    InvalidEndpointDiscoveryConfigurationError InvalidExpressionError InvalidHostLabelError
    InvalidMaxRetryAttemptsError InvalidProxiesConfigError InvalidRegionError InvalidRetryConfigurationError
    InvalidRetryModeError InvalidS3AddressingStyleError InvalidS3UsEast1RegionalEndpointConfigError
    InvalidSTSRegionalEndpointsConfigError MD5UnavailableError MissingDependencyException MissingParametersError
    MissingServiceIdError NoRegionError OperationNotPageableError PaginationError ParamValidationError RangeError
    ServiceNotInRegionError StubAssertionError StubResponseError UnStubbedResponseError UndefinedModelAttributeError
    UnknownClientMethodError UnknownEndpointError UnknownEndpointResolutionBuiltInName UnknownFIPSEndpointError
    UnknownKeyError UnknownParameterError UnknownRegionError UnknownServiceError UnknownServiceStyle
    UnknownSignatureVersionError UnseekableStreamError UnsupportedOutpostResourceError
    UnsupportedS3AccesspointConfigurationError UnsupportedS3ArnError UnsupportedS3ConfigurationError
    UnsupportedS3ControlArnError UnsupportedS3ControlConfigurationError UnsupportedServiceProtocolsError
    UnsupportedSignatureVersionError ValidationError WaiterConfigError WaiterError
"""


def test_every_error_of_botocore_is_mapped() -> None:
    """A class that botocore grows must be given a meaning, if only that of a bad request."""
    mapped = {
        found.__name__
        for found in _classes(botocore.exceptions)
        if any(base.__name__ in boto3_errors._KINDS for base in found.__mro__[: _own(found)])
    }
    assert {found.__name__ for found in _classes(botocore.exceptions)} - mapped - set(_OTHERS.split()) == set()


def _own(found: type[BaseException]) -> int:
    """How many classes of the MRO come before the common base."""
    return next(place for place, base in enumerate(found.__mro__) if base.__name__ in ("BotoCoreError", "Exception"))


def test_every_class_of_the_tree_is_reachable() -> None:
    """Each leaf of the tree stands for something that a test above provokes; a client knows of no seals and keys."""
    leaves = {
        found
        for found in vars(errors).values()
        if inspect.isclass(found) and issubclass(found, StoreError) and not found.__subclasses__()
    }
    provoked = {kind for _, kind in ANSWERS.values()} | {ObjectMissing, Unreachable, TLSFailure}
    # and of uploads in parts another module tells
    elsewhere = {*errors.Untrusted.__subclasses__(), errors.KeyRefused, errors.KeyUnavailable, errors.UploadMissing}
    assert leaves - elsewhere == provoked


@pytest.mark.parametrize("verb", ["get", "create", "delete_many", "list"])
def test_an_error_without_words(script: ScriptedServer, scripted: Callable[..., Store], verb: str) -> None:
    """Some servers send an empty Message; the code says what is to be done."""
    script.answer = error(503, "SlowDown", "")
    raised = failure(scripted(), VERBS[verb])
    assert type(raised) is Throttled
    assert "None" not in str(raised)


@pytest.mark.parametrize("headers", [{}, {"ETag": '"e1"'}])
def test_a_page_in_place_of_an_object(script: ScriptedServer, scripted: Callable[..., Store], headers: Any) -> None:
    """A web server that answers 200 to anything does not make results look expired, or absent."""
    script.answer = Answer(200, b"<html>", {"Content-Type": "text/html", **headers})
    raised = failure(scripted(), VERBS["get"])
    assert type(raised) is BadRequest
    assert "not S3's, for it has no Last-Modified: is `endpoint_url` right?" in str(raised)


@pytest.mark.parametrize(("etag", "same"), [('"e1"', True), ('W/"e1"', True), ("e1", True), ('"e2"', False)])
def test_a_server_that_ignores_if_match(
    script: ScriptedServer, scripted: Callable[..., Store], etag: str, same: bool
) -> None:
    """A range of another version is refused as S3 would; two versions never become one value."""
    script.answer = Answer(206, b"de", {**stored().headers, "ETag": etag, "Content-Range": "bytes 3-4/10"})
    store = scripted()
    if same:
        assert store.get("k", start=3, length=2, if_match='"e1"').body == b"de"
    else:
        with pytest.raises(PreconditionFailed, match="s3://scripted/k"):
            store.get("k", start=3, length=2, if_match='"e1"')
