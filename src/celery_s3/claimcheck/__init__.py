"""The claim check: arguments too large for a message are stored in S3, and the message tells where.

::

    app = Celery("proj", ...)
    claimcheck.install(app)
    app.conf.task_serializer = "s3+json"
    app.conf.accept_content = ["s3+json", "json"]

What is in which module::

    serializers     what kombu finds by its entry point
    envelope        a message's body with the arguments in it, or with a pointer in their place
    lazy            the arguments of a message with a pointer: fetched where they are used
    messages        storing, fetching and removing what messages point to
    names           its names
    amqp            tells the serializers which app a message is of

kombu imports this package while Celery is being imported: nothing here may import either at the top.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install"]

_AMQP = "celery_s3.claimcheck.amqp:ClaimCheckAMQP"
_CELERYS_OWN = "celery.app.amqp:AMQP"


def install(app: Any) -> None:
    """Let the messages of an app use the serializers ``s3+json``, ``s3+pickle`` and the like.

    Call it where the app is made, for each app that uses them. A serializer is told nothing but the data: this is
    how it learns whose bucket to use.

    Raises:
        ConfigurationError: the app has a class of its own for messages, or has made its messages' settings already.
    """
    from celery_s3.errors import ConfigurationError

    if app.amqp_cls == _AMQP:
        return
    if app.amqp_cls != _CELERYS_OWN:
        raise ConfigurationError(
            f"the app has its own `amqp` class, {app.amqp_cls!r}: derive it from"
            " celery_s3.claimcheck.amqp.ClaimCheckAMQP instead of calling claimcheck.install"
        )
    if "amqp" in vars(app):
        raise ConfigurationError("claimcheck.install comes too late: call it right where the app is made")
    app.amqp_cls = _AMQP
