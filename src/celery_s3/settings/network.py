"""Which proxy a request goes through, and which certificates are trusted: decided here, once, for both clients.

The two of them read other variables, and the same ones in other ways. What is found here is given to each of them in
so many words. The rules are those of ``requests``, for users know them: ``docs/network.md`` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote, urlsplit

from .secret import Secret

__all__ = ["CA_VARIABLES", "PROXY_VARIABLES", "Proxies", "Proxy", "no_proxy_of", "proxy_variables"]

#: Where other programs are told a CA bundle, strongest first; those of AWS are stronger.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
#: The schemes of requests, and for each the variable that names its proxy; each may be written in capitals too.
PROXY_VARIABLES = {"https": "https_proxy", "http": "http_proxy", "all": "all_proxy"}

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and who named it.

    Attributes:
        url: ``scheme://host:port``, with user and password before the host where it asks for them.
        where: the setting or the variable, for messages.
        wrong: why it cannot be used, empty where it can: told where a request would go through it, and not before.
    """

    url: Secret
    where: str = "`proxies`"
    wrong: str = ""

    def __str__(self) -> str:
        """Its URL without user and password, and who named it."""
        parts = urlsplit(self.url.reveal())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.where})"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies by what they are for.

    Attributes:
        by_scheme: for ``http`` and ``https`` requests, and for ``all`` that have none of their own.
        bypass: the entries of ``NO_PROXY``: what is reached without a proxy.
    """

    by_scheme: Mapping[str, Proxy] = field(default_factory=dict)
    bypass: tuple[str, ...] = ()

    def to(self, url: str) -> Proxy | None:
        """The proxy through which a URL is reached, ``None`` for none."""
        parts = urlsplit(url)
        found = self.by_scheme.get(parts.scheme) or self.by_scheme.get("all")
        if found is None:
            return None
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        return None if any(_covers(entry, host, port) for entry in self.bypass) else found

    def passwords(self) -> Iterator[str]:
        """What no message may repeat: as it stands in the URLs, and decoded."""
        for proxy in self.by_scheme.values():
            if password := urlsplit(proxy.url.reveal()).password:
                yield password
                yield unquote(password)


def proxy_variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Scheme, variable and value of each proxy that the environment names.

    As urllib has it, for ``requests`` and boto3 ask urllib: lower case is stronger, even if empty, and a CGI script's
    ``HTTP_PROXY`` is left alone, for that is a header which its caller chose.
    """
    for scheme, lower in PROXY_VARIABLES.items():
        upper = lower.upper()
        name = upper if lower not in environ and not (scheme == "http" and "REQUEST_METHOD" in environ) else lower
        if value := environ.get(name, ""):
            yield scheme, name, value


def no_proxy_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The entries of ``no_proxy``, or of ``NO_PROXY`` where that is empty or missing."""
    text = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    return tuple(filter(None, (entry.strip().lower() for entry in text.split(","))))


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether an entry of ``NO_PROXY`` is about a host: ``*``, a name and all below it, an address, a network.

    An entry with a port is about that port alone.
    """
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ip_network(entry, strict=False)
        except ValueError:
            return False
    name, with_port = _split_port(entry)
    if with_port not in ("", str(port)):
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, str]:
    """Host and port of ``host``, ``host:port``, ``::1`` and ``[::1]:port``."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
