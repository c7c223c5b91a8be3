"""``celery s3 browse``: the results in a browser."""

from __future__ import annotations

import secrets
import webbrowser

import click

from celery_s3.backends.s3 import S3Backend

from ..command import command as s3_command
from ..context import with_backend

__all__ = ["command"]


@s3_command("browse", example="--port 8080")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; others can reach it.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="The port to listen at; a free one by default.")
@click.option("--allow-forget", is_flag=True, help="Results may be deleted; without it nothing is ever written.")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@with_backend
def command(backend: S3Backend, host: str, port: int, allow_forget: bool, show: bool) -> None:
    """Look at results and chords in a browser.

    It prints an address with a token in it, which alone lets one in, and runs until Ctrl-C. Results come a page of
    keys at a time, newest first in it, with filters by state, task, time and id; one result with its value, traceback,
    children and files; chords in flight with the members that are missing. Each page tells what it has cost: a LIST,
    and a request for each result that is looked at, never more than 200.

    It needs the extra `celery-s3[browse]`, s3:ListBucket and s3:GetObject; --allow-forget also s3:DeleteObject.
    """
    try:
        import uvicorn

        from .app import make_app
    except ImportError as exc:
        raise click.ClickException(f"{exc.name} is missing: pip install 'celery-s3[browse]'.") from exc
    token = secrets.token_urlsafe(24)
    config = uvicorn.Config(
        make_app(backend, token, hosts={host, "127.0.0.1", "localhost", "[::1]"}, allow_forget=allow_forget),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    socket = config.bind_socket()
    url = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}/?token={token}"
    click.echo(url)
    click.echo("Whoever has this address can read all results. Ctrl-C ends it.", err=True)
    if show:
        webbrowser.open(url)
    uvicorn.Server(config).run(sockets=[socket])
