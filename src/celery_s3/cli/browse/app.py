"""The pages: an application that any ASGI server runs, read-only unless it is told otherwise.

Who has the token may look. It comes once in the address, and from then on in a cookie, so that no link and no history
holds it. Whatever comes from the bucket is text that the templates escape; nothing is loaded from elsewhere, no script
runs, and a file is always downloaded, never shown.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import click
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import CeleryS3Error, UnreadableResult
from celery_s3.files.file import S3File
from celery_s3.operate.inventory import Found, Inventory
from celery_s3.store.api import PAGE
from celery_s3.store.counting import difference, requests_in

from ..chords import awaited_in, body_names
from ..files import file_record, files_of_result
from ..lookup import stored
from ..output import data_size, duration, printable
from ..query import filter_of, inventory_of, moment, place, price
from ..show import SHOWN, Shown
from ..values import jsonable

__all__ = ["make_app"]

#: Results of a page, and how many are looked at to find them.
ROWS, LOOKS = 20, 200
_COOKIE = "celery-s3-browse"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_TEMPLATES = Path(__file__).parent / "templates"


def make_app(backend: S3Backend, token: str, *, hosts: Collection[str], allow_forget: bool = False) -> Starlette:
    """The application.

    Arguments:
        token: lets one in.
        hosts: the names, without a port, by which it may be asked: a page elsewhere whose name was made to point here
            is refused.
        allow_forget: results may be deleted.
    """
    pages = _Pages(backend, token, allow_forget)
    routes = [
        Route("/", pages.results),
        Route("/result", pages.result),
        Route("/file", pages.file),
        Route("/chords", pages.chords),
        Route("/style.css", pages.style),
    ]
    if allow_forget:
        routes.append(Route("/forget", pages.forget, methods=["POST"]))

    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = _refusal(request, token, hosts) or await call(request)
        answer.headers.update(_HEADERS)
        return answer

    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)])


def _refusal(request: Request, token: str, hosts: Collection[str]) -> Response | None:
    """What is answered in place of a page; ``None``: who asks may see it."""
    if re.sub(r":\d*$", "", request.headers.get("host", "")) not in hosts:
        return PlainTextResponse("This is not where this page is served.", 421)
    given = request.query_params.get("token")
    if given is not None and hmac.compare_digest(given.encode(), token.encode()):
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        # one slash: with two, it would be another host
        answer: Response = RedirectResponse(_link("/" + request.url.path.lstrip("/"), **dict(query)), 303)
        answer.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        return answer
    if not hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), token.encode()):
        return PlainTextResponse("Open the address that `celery s3 browse` has printed, with its token.", 403)
    return None


class _Pages:
    """The pages, each of which tells what it has cost. They run in threads: all of them wait for S3."""

    def __init__(self, backend: S3Backend, token: str, allow_forget: bool) -> None:
        self.backend = backend
        self.before = backend.tally.snapshot()
        # of this process alone, and no use without the cookie
        self.form_token = hmac.digest(token.encode(), b"form", "sha256").hex()
        self.templates = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
        self.templates.filters |= {"size": data_size, "age": _age, "text": _text}
        self.templates.globals |= {"where": place(backend), "allow_forget": allow_forget, "link": _link}

    def _page(self, name: str, before: Any, status: int = 200, **values: Any) -> Response:
        settings, now = self.backend.settings, self.backend.tally.snapshot()
        spent = price(requests_in(difference(now, before)), settings)
        total = price(requests_in(difference(now, self.before)), settings)
        values |= {"spent": spent, "total": total, "form_token": self.form_token}
        return HTMLResponse(self.templates.get_template(name).render(values), status)

    def style(self, request: Request) -> Response:
        return Response((_TEMPLATES / "style.css").read_text(), media_type="text/css")

    # -- results

    def results(self, request: Request) -> Response:
        """A page of keys, newest first in it: S3 lists by key alone, and nobody lists a million to show twenty."""
        before, query = self.backend.tally.snapshot(), request.query_params
        if id := query.get("id", "").strip():
            return RedirectResponse(_link("/result", id=id), 303)
        form = {name: query.get(name, "").strip() for name in ("state", "task", "since", "older", "after")}
        skip = int(query.get("skip", "0")) if query.get("skip", "0").isdecimal() else 0
        try:
            wanted = filter_of(
                tuple(form["state"].split()), form["task"], _moment(form["since"]), _moment(form["older"])
            )
            found, last, looked = self._found(wanted, form["after"], skip)
        except (CeleryS3Error, click.ClickException) as exc:
            why = exc.message if isinstance(exc, click.ClickException) else str(exc)
            return self._page("results.html", before, 400, form=form, rows=[], trouble=why)
        more = _link("/", **form, skip=str(skip + looked)) if looked else ""
        other = _link("/", **form | {"after": last}) if last else ""
        return self._page("results.html", before, form=form, rows=found, more=more, other=other)

    def _found(self, wanted: Any, after: str, skip: int) -> tuple[list[Found], str, int]:
        """The results to show, the last key where there are more, and how many were looked at if there are others."""
        backend, prefix = self.backend, self.backend.layout.results
        listing = backend.store.list(prefix, start_after=prefix + after if after else "")
        entries = list(islice(listing, PAGE))
        keys = [entry for entry in entries if wanted.in_time(entry.modified)]
        keys.sort(key=lambda entry: (entry.modified, entry.key), reverse=True)
        rows: list[Found] = []
        looked = 0
        while looked < LOOKS and len(rows) < ROWS and skip + looked < len(keys):
            some = keys[skip + looked : skip + looked + ROWS]
            parsed = [backend.layout.parse(entry.key) for entry in some]
            known = {one.id: one for one in self._inventory().known(key.id for key in parsed if key)}
            for key in parsed:
                looked += 1
                one = known.get(key.id) if key else None
                if one is not None and wanted.fits(one):
                    rows.append(one)
                if len(rows) == ROWS:
                    break
        last = entries[-1].key.removeprefix(prefix) if len(entries) == PAGE else ""
        return rows, last, looked if skip + looked < len(keys) else 0

    def _inventory(self) -> Inventory:
        return inventory_of(self.backend, yes=True)

    def result(self, request: Request) -> Response:
        """One result, or a saved group."""
        before, id = self.backend.tally.snapshot(), request.query_params.get("id", "")
        try:
            found, is_group = stored(self.backend, id)
            shown = Shown(self.backend, id, found)
            if is_group:
                meta = self.backend.reader.group_in(id, found, shown.restored)
                members = shown.members(meta["result"].results) if meta else []
                return self._page("result.html", before, id=id, about=shown.about, members=members)
            if found.size > SHOWN:
                return self._page("result.html", before, id=id, about=shown.about, trouble="It is too large to show.")
            meta = self.backend.reader.meta_in(id, found)
        except UnreadableResult as exc:
            return self._page("result.html", before, id=id, about=shown.about, trouble=str(exc))
        except CeleryS3Error as exc:
            return self._page("result.html", before, 404, id=id, about={}, trouble=str(exc))
        about = shown.about | shown.from_body(meta)
        children = about.pop("children")
        return self._page(
            "result.html",
            before,
            id=id,
            about=about,
            children=children,
            value=json.dumps(jsonable(meta["result"]), indent=2, ensure_ascii=False),
            traceback=meta.get("traceback"),
            files=[file_record(file) for file in files_of_result(self.backend, id, found)],
        )

    def file(self, request: Request) -> Response:
        """A file of a result, to be saved."""
        id, number = request.query_params.get("id", ""), request.query_params.get("n", "0")
        try:
            found, _ = stored(self.backend, id)
            file = files_of_result(self.backend, id, found)[int(number)]
            pieces = _begun(file)
        except (CeleryS3Error, ValueError, IndexError) as exc:
            return PlainTextResponse(f"There is no such file: {printable(str(exc))}", 404)
        named = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name or 'file', safe='')}"}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=named)

    def chords(self, request: Request) -> Response:
        """Chords in flight, with the members that are missing."""
        before = self.backend.tally.snapshot()
        try:
            chords = sorted(self.backend.repairs.survey.chords(), key=lambda one: -one.age)
            rows = [
                (one, body_names(self.backend, one.manifest), awaited_in(self.backend, one)) for one in chords[:ROWS]
            ]
        except CeleryS3Error as exc:
            return self._page("chords.html", before, 400, rows=[], trouble=str(exc))
        return self._page("chords.html", before, rows=rows, rest=len(chords) - len(rows))

    async def forget(self, request: Request) -> Response:
        """Delete a result with its files."""
        form = dict(parse_qsl((await request.body()).decode(errors="replace")))
        if not hmac.compare_digest(form.get("form_token", "").encode(), self.form_token.encode()):
            return PlainTextResponse("This form is not of this page.", 403)
        try:
            await run_in_threadpool(self.backend.forget, form.get("id", ""))
        except (CeleryS3Error, ValueError) as exc:
            return PlainTextResponse(f"It was not forgotten: {printable(str(exc))}", 400)
        return RedirectResponse("/", 303)


def _begun(file: S3File) -> Iterator[bytes]:
    """The pieces of a file, of which the first is there: where it cannot be read, that is told before the answer."""
    pieces = file.chunks()
    first = next(pieces, b"")

    def all_of_them() -> Iterator[bytes]:
        yield first
        yield from pieces

    return all_of_them()


def _link(path: str, **query: str) -> str:
    text = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{text}" if text else path


def _moment(text: str) -> datetime | None:
    return moment(text) if text else None


def _age(at: datetime) -> str:
    return f"{duration(max(0.0, (datetime.now(UTC) - at).total_seconds()))} ago"


def _text(value: Any) -> str:
    """A value in a line, its control characters shown."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return printable(value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False))
