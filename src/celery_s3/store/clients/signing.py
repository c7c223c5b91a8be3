"""One signed request without a client, for servers that are being started or stood in for."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

__all__ = ["signed_headers"]


class _Signer(S3SigV4Auth):
    """botocore hashes the body; here the caller has the hash, and perhaps no body."""

    def __init__(self, credentials: Credentials, region: str, body_hash: str) -> None:
        super().__init__(credentials, "s3", region)
        self._body_hash = body_hash

    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002
        return self._body_hash


def signed_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body_hash: str,
    *,
    access_key: str,
    secret_key: str,
    region: str,
) -> dict[str, str]:
    """Sign a request to S3 with Signature Version 4, as of now.

    Arguments:
        url: with scheme, host, and path and query percent-encoded as they are sent.
        headers: all of them are signed; earlier signatures and dates among them are replaced.
        body_hash: for ``x-amz-content-sha256``: the SHA-256 of the body in hex, or S3's ``UNSIGNED-PAYLOAD``,
            ``STREAMING-…``.

    Returns:
        ``headers`` with ``Authorization``, ``X-Amz-Date`` and ``X-Amz-Content-SHA256``.
    """
    parts = urlsplit(url)
    # The server signs the query as it decodes it, whatever of it the client left bare.
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    request = AWSRequest(method, parts._replace(query="").geturl(), dict(headers), params=query)
    _Signer(Credentials(access_key, secret_key), region, body_hash).add_auth(request)
    return dict(request.headers.items())
