"""Tells the serializers which app sends the message that they encode: kombu hands them the data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery.app.amqp import AMQP
from kombu.serialization import prepare_accept_content, registry

from celery_s3.errors import ConfigurationError

from .messages import sending_app

__all__ = ["ClaimCheckAMQP"]

_OURS = "s3+"


class ClaimCheckAMQP(AMQP):
    """Celery's class for messages; :func:`celery_s3.claimcheck.install` sets it."""

    def _create_task_sender(self) -> Callable[..., Any]:
        check(self.app.conf)
        send = super()._create_task_sender()

        def send_task_message(*args: Any, **kwargs: Any) -> Any:
            token = sending_app.set(self.app)
            try:
                return send(*args, **kwargs)
            finally:
                sending_app.reset(token)

        return send_task_message

    def TaskConsumer(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 (Celery's name)
        """As Celery's.

        Raises:
            ConfigurationError: see :func:`check`.
        """
        check(self.app.conf)
        return super().TaskConsumer(*args, **kwargs)


def check(conf: Any) -> None:
    """Check that the serializers are used for messages alone, and accepted by who reads them.

    Arguments:
        conf: of the app.

    Raises:
        ConfigurationError: they are not; the message names the setting.
    """
    if conf.result_serializer.startswith(_OURS):
        raise ConfigurationError(
            f"result_serializer is {conf.result_serializer!r}, which is for messages; results are in S3 anyway."
            f" Set {conf.result_serializer.removeprefix(_OURS)!r}"
        )
    _check_accepted("task_serializer", conf.task_serializer, conf.accept_content)
    if conf.result_accept_content is None:
        _check_accepted("result_serializer", conf.result_serializer, conf.accept_content)


def _check_accepted(setting: str, serializer: str, accepted: Iterable[str] | None) -> None:
    names = list(accepted or ())
    ours = any(_OURS in name for name in (serializer, *names))
    if ours and registry.name_to_type.get(serializer) not in prepare_accept_content(names):
        raise ConfigurationError(
            f"{setting} is {serializer!r}, but accept_content is {names!r}: add {serializer!r} to it"
        )
