"""Both clients, each server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import servers
from scripted import ScriptedServer

from celery_s3.settings import Secret, Settings
from celery_s3.store.api import Store
from celery_s3.store.clients.boto3_client import Boto3Client
from celery_s3.store.clients.obstore_client import ObstoreClient
from celery_s3.store.requests import Request


class Obstore(ObstoreClient):
    """As it is used: what obstore does not do is sent to boto3."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._other = Boto3Client(settings)

    def send(self, request: Request[Any]) -> Any:
        return super().send(request) if type(request) in self._HOW else self._other.send(request)

    def close(self) -> None:
        super().close()
        self._other.close()


CLIENTS: dict[str, Callable[[Settings], Store]] = {"obstore": Obstore, "boto3": Boto3Client}


@pytest.fixture
def open_client() -> Iterator[Callable[[str, Settings], Store]]:
    """``open_client("boto3", settings)``: a client that is closed after the test."""
    with ExitStack() as stack:

        def make(name: str, settings: Settings) -> Store:
            store = CLIENTS[name](settings)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture(params=servers.parameters(servers.OF_CONTRACT))
def server(request: pytest.FixtureRequest, real_server: Callable[..., Any]) -> Any:
    return real_server(request)


@pytest.fixture(params=CLIENTS)
def client_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(server: Any, client_name: str, settings_for: Callable[..., Settings], open_client: Any) -> Store:
    return open_client(client_name, settings_for(server))


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def scripted_settings(script: ScriptedServer) -> Callable[..., Settings]:
    def make(**overrides: Any) -> Settings:
        values = {
            "bucket": "scripted",
            "endpoint_url": script.endpoint_url,
            "access_key_id": Secret("AKSCRIPTED"),
            "secret_access_key": Secret("a-secret-of-the-test"),
            "connect_timeout": 2.0,
            "read_timeout": 5.0,
        }
        return Settings(**(values | overrides))

    return make


@pytest.fixture
def scripted(client_name: str, scripted_settings: Callable[..., Settings], open_client: Any) -> Callable[..., Store]:
    """A client of the scripted server; settings may be given."""
    return lambda **overrides: open_client(client_name, scripted_settings(**overrides))
