"""The results of a group, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from celery import states
from celery.result import EagerResult, ResultBase, ResultSet
from kombu.utils.encoding import bytes_to_str

from celery_s3.celery_private import keep_meta, known_meta
from celery_s3.codec.lazy import is_partial

from .members import walk

__all__ = ["gather"]

Meta = dict[str, Any]


def gather(
    result: ResultSet,
    fetch: Callable[[list[str]], Iterable[tuple[str, Meta]]],
    without_value: Callable[[str, Meta], Meta] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield ``(id, meta)`` of each member as it becomes ready, ``(id, results)`` of a group in the group.

    What a member knows already is not fetched again, and each keeps what is: ``get()`` after ``ready()``, or a
    second one, costs nothing, and neither does ``join_native()``, which asks the members of a group in the group.

    Arguments:
        fetch: reads the metas of the given tasks and yields each with its id when it is ready.
        without_value: makes of a meta what the members keep, where they are not to keep the values.
    """
    direct = {bytes_to_str(member.id) for member in result.results if not isinstance(member, ResultSet)}
    groups = [(group, set(_leaves(group))) for group in result.results if isinstance(group, ResultSet)]
    yield from ((group.id, group.results) for group, missing in groups if not missing)
    leaves = _leaves(result)
    inside = {id for _, missing in groups for id in missing}
    known = {id: meta for id, same in leaves.items() if (meta := _known(same))}

    def lighter(id: str, meta: Meta) -> Meta:
        if without_value is None or id in known or meta["status"] != states.SUCCESS:
            return meta
        return without_value(id, meta)

    for id, meta in chain(known.items(), fetch([id for id in leaves if id not in known])):
        _keep(leaves[id], meta if id in inside else lighter(id, meta))
        if id in direct:
            yield id, meta
        for group, missing in groups:
            if id in missing:
                missing.remove(id)
                if not missing:
                    yield group.id, group.results
                    for one, same in _leaves(group).items():
                        if (kept := known_meta(same[0])) is not None:
                            _keep(same, lighter(one, kept))


def _keep(same: list[Any], meta: Meta) -> None:
    """Let the results of a task keep a meta, as Celery's own backends do; an eager one has its own."""
    for leaf in same:
        if not isinstance(leaf, EagerResult):
            keep_meta(leaf, meta)


def _leaves(result: ResultBase) -> dict[str, list[Any]]:
    """The results of single tasks by id, in their order; an id may be there several times."""
    leaves: dict[str, list[Any]] = {}
    for leaf in walk(result):
        leaves.setdefault(bytes_to_str(leaf.id), []).append(leaf)
    return leaves


def _known(same: list[Any]) -> Meta | None:
    """What one of the results of a task knows; a large one's value must be there, else it is read with the others'."""
    return next((meta for meta in map(known_meta, same) if meta and not is_partial(meta)), None)
