"""``celery s3 policy``: what IAM must allow."""

from __future__ import annotations

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.operate import policy

from .command import command as s3_command
from .context import with_backend
from .output import print_json

__all__ = ["command"]


@s3_command("policy", example="--role worker > policy.json")
@click.option(
    "--role",
    type=click.Choice(policy.ROLES),
    default="worker",
    show_default=True,
    help="Who gets it: `worker` runs tasks, `client` sends them and reads results, `operator` runs these commands but"
    " `init`, by which an `administrator` sets the bucket up.",
)
@click.option("--json", is_flag=True, expose_value=False, help="Print JSON, as it does anyway.")
@with_backend
def command(backend: S3Backend, role: policy.Role) -> None:
    """Print the IAM policy with the least that a role needs.

    It allows the calls that the code makes, on the keys of these results alone, with the KMS key and the tags of the
    settings, and on the queues of those who wait where notices go by SQS. It makes no request, and prints JSON that IAM
    takes as it is.
    """
    messages, queues = backend.terms.messages is not None, backend.notices.kind == "sqs"
    print_json(policy.document(backend.settings, role, backend.layout, messages=messages, queues=queues))
