"""The bucket's lifecycle rules as pure functions over S3's own dicts; nothing here makes a request.

::

    wanted(layout, terms, *, by_tag=False, versioned=False) -> list[Rule]    what there should be
    merge(existing, wanted, former=()) -> list[Rule]     everybody else's rules as they are, ours brought up to date
    deletes(existing, merged) -> dict[str, float]     where new rules delete what old ones did not, after how many days
    leaves(existing, merged) -> list[str]     and the other way about
    covers(existing, wanted) -> bool          whether what expires is deleted in time, for certain
    hazards(existing, layout, terms, tags) -> list[str]     what other rules do to our objects
    outdated(existing, wanted) -> list[str]     what our own rules of an earlier `init` do to them
    shared(rules, layout) -> list[str]     what our own rules do to others' objects
    describe(rule) -> str                     one line for a person

The arguments of one deployment are those of its backend: ``backend.layout``, ``backend.terms`` and
``backend.settings.expiry_tags``; ``backend.lifecycle_rules(versioned=…)`` is ``wanted`` of these.

S3 counts whole days from the last write to the midnight (UTC) after, so days are rounded up: nothing is deleted
before it has expired. It cannot filter by metadata, nor leave anything out: a rule for a prefix deletes all of it, and
where two rules apply, the shorter one wins. So results that live longer than others need either a rule as long as the
longest, or tags.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from celery_s3.errors import ConfigurationError
from celery_s3.keys import FILES, GROUPS, KINDS, MESSAGES, RESULTS, Kind, Layout
from celery_s3.metadata import EXPIRY_TAG, EXPIRY_TAG_DAYS, EXPIRY_TAG_DEFAULT

from .terms import DAY, SLACK, Terms

__all__ = [
    "LIMIT",
    "Rule",
    "covers",
    "deletes",
    "describe",
    "hazards",
    "leaves",
    "merge",
    "of_others",
    "outdated",
    "owner",
    "shared",
    "wanted",
]

#: One rule, as S3's API has it.
Rule = dict[str, Any]

#: The rules that S3 allows a bucket.
LIMIT = 1000
_OURS = "celery-s3-"
#: Days after which the parts of an upload that nobody completed are removed; the longest upload takes hours.
_STALE_UPLOAD = 1
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
#: What expires, in the order of the rules.
EXPIRING = tuple(kind for kind in KINDS if kind.term)


# -- what there should be


def wanted(layout: Layout, terms: Terms, *, by_tag: bool = False, versioned: bool = False) -> list[Rule]:
    """The rules for one deployment.

    Arguments:
        by_tag: results and files carry the tag that tells how long they live (the setting `expiry_tags`); without it,
            all results stay as long as successes or failures do, whichever is longer.
        versioned: the bucket keeps versions; what was deleted is to be removed a day later.
    """
    found: list[Rule] = []
    if by_tag:
        days = {EXPIRY_TAG_DEFAULT: terms.results, **{str(days): days * DAY for days in EXPIRY_TAG_DAYS}}
        found += [
            _expiring(layout, f"{kind}-{value}", prefix, term + slack, versioned, value)
            for kind, prefix, slack in (("results", layout.results, 0), ("files", layout.files, SLACK))
            for value, term in days.items()
            if term is not None
        ]
    tagged = (RESULTS, FILES) if by_tag else ()
    found += [
        _expiring(layout, kind.name, layout.prefix(kind), term, versioned)
        for kind in EXPIRING
        if kind not in tagged and (term := terms.of_all(kind)) is not None
    ]
    if terms.sent:
        found.append(_expiring(layout, "files-sent", layout.sent, terms.sent, versioned))
    return found + [_aborting(layout, kind) for kind in EXPIRING]


def _aborting(layout: Layout, kind: Kind) -> Rule:
    after = {"DaysAfterInitiation": _STALE_UPLOAD}
    return _rule(layout, f"uploads-{kind.name}", layout.prefix(kind), AbortIncompleteMultipartUpload=after)


def _expiring(layout: Layout, kind: str, prefix: str, term: float, versioned: bool, tag: str = "") -> Rule:
    days = {"Days": _days(term)}
    extra = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}} if versioned else {}
    return _rule(layout, kind, prefix, tag, Expiration=days, **extra)


def _rule(layout: Layout, kind: str, prefix: str, tag: str = "", **actions: Any) -> Rule:
    where: dict[str, Any] = {"Prefix": prefix}
    if tag:
        where = {"And": {"Prefix": prefix, "Tags": [{"Key": EXPIRY_TAG, "Value": tag}]}}
    return {"ID": f"{_OURS}{owner(layout)}-{kind}", "Status": "Enabled", "Filter": where, **actions}


def _days(seconds: float) -> int:
    return max(1, math.ceil(seconds / DAY))


# -- among other rules


def owner(layout: Layout) -> str:
    """The name of a deployment in the names of its rules: several may share a bucket, each has rules of its own."""
    return hashlib.sha256(layout.results.encode()).hexdigest()[:8]


def merge(existing: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], former: str = "") -> list[Rule]:
    """All rules of the bucket, once ours are brought up to date.

    Others keep their content and their order, also those of other deployments of this package. Doing it again
    changes nothing.

    Arguments:
        former: the :func:`owner` that these were once, whose rules go.

    Raises:
        ConfigurationError: S3 would not accept them.
    """
    ours = {_owner(rule) for rule in wanted} | ({former} if former else set())
    new = {str(rule["ID"]): rule for rule in _in_style_of(existing, ours, wanted)}
    merged = [
        dict(new.pop(rule["ID"])) if _owner(rule) in ours else dict(rule)
        for rule in existing
        if _owner(rule) not in ours or rule["ID"] in new
    ]
    merged += map(dict, new.values())
    if len(merged) > LIMIT:
        raise ConfigurationError(
            f"The bucket has {len(existing)} lifecycle rules, and with those of celery-s3 {len(merged)}; S3 allows"
            f" {LIMIT}. Remove {len(merged) - LIMIT} of them, or give the results a bucket of their own."
        )
    return merged


def deletes(existing: Sequence[Mapping[str, Any]], merged: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The prefixes under which new rules delete what no rule did, or later.

    Each with the days after which they do; infinite where they are for objects with a tag alone, which this package
    has put there.
    """
    found: dict[str, float] = {}
    for rule in merged:
        if rule not in existing and "Expiration" in rule and not covers(existing, [rule]):
            days = math.inf if _tags(rule) else float(rule["Expiration"]["Days"])
            found[_prefix(rule)] = min(days, found.get(_prefix(rule), math.inf))
    return dict(sorted(found.items()))


def leaves(existing: Sequence[Mapping[str, Any]], merged: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prefixes under which something was deleted, and nothing will be."""
    kept = [_prefix(rule) for rule in merged if "Expiration" in rule]
    gone = {_prefix(rule) for rule in existing if "Expiration" in rule and rule not in merged}
    return sorted(prefix for prefix in gone if not any(prefix.startswith(one) for one in kept))


def of_others(rules: Iterable[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]) -> int:
    """How many rules belong to other deployments of this package."""
    ours = set(map(_owner, wanted))
    return sum(_owner(rule) not in ("", *ours) for rule in rules)


def _owner(rule: Mapping[str, Any]) -> str:
    """The deployment that a rule belongs to, empty for one that is not this package's."""
    first, _, rest = str(rule.get("ID", "")).removeprefix(_OURS).partition("-")
    return first if str(rule.get("ID", "")).startswith(_OURS) and rest else ""


def _in_style_of(
    existing: Iterable[Mapping[str, Any]], ours: set[str], wanted: Iterable[Mapping[str, Any]]
) -> Iterator[Rule]:
    """Ours, with `Prefix` in place of `Filter` where others have that: S3 refuses a mixture."""
    old = next((rule for rule in existing if "Filter" not in rule and _owner(rule) not in ours), None)
    for rule in wanted:
        if old is None:
            yield dict(rule)
        elif "Prefix" in rule["Filter"]:
            yield {"Prefix" if name == "Filter" else name: value for name, value in rule.items()} | {
                "Prefix": rule["Filter"]["Prefix"]
            }
        else:
            raise ConfigurationError(
                f"The lifecycle rule {old.get('ID', '')!r} has its Prefix outside of a Filter, the form before 2016:"
                " S3 accepts no rule with tags beside it, and `expiry_tags` needs them. Put that rule's Prefix into a"
                " Filter, which means the same, or set `expiry_tags` to False."
            )


def covers(existing: Iterable[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]) -> bool:
    """Whether enabled rules delete everything that the wanted ones would, and no later."""
    enabled = [rule for rule in existing if rule.get("Status") == "Enabled"]
    return all(any(_covers(one, rule) for one in enabled) for rule in wanted if "Expiration" in rule)


def _covers(one: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    days = one.get("Expiration", {}).get("Days")
    if days is None or days > rule["Expiration"]["Days"] or _sized(one):
        return False
    return _prefix(rule).startswith(_prefix(one)) and _tags(one) <= _tags(rule)


def hazards(
    existing: Iterable[Mapping[str, Any]], layout: Layout, terms: Terms, tags: Mapping[str, str] | None = None
) -> list[str]:
    """What the bucket's other rules do to objects of this deployment, a sentence each.

    Arguments:
        tags: those that all objects of this deployment have.
    """
    ours = {_owner(rule) for rule in wanted(layout, terms)}
    return [
        sentence
        for rule in existing
        if rule.get("Status") == "Enabled" and _owner(rule) not in ours and _may_fit(rule, tags or {})
        for sentence in _harm(rule, layout, terms)
    ]


def _may_fit(rule: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    """Whether the rule's tags are such as our objects may have; each result has its own value of one of them."""
    return all(key == EXPIRY_TAG or tags.get(key) == value for key, value in _tags(rule))


def outdated(existing: Iterable[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rules of an earlier `init` delete before its time by now, a sentence each."""
    needed = {rule["ID"]: rule.get("Expiration", {}).get("Days") for rule in wanted}
    ours = set(map(_owner, wanted))
    found = []
    for rule in existing:
        days = rule.get("Expiration", {}).get("Days")
        if days is None or rule.get("Status") != "Enabled" or _owner(rule) not in ours:
            continue
        right = needed.get(rule["ID"])
        if right is None or days < right:
            should = f"after {_counted(right)}" if right else "no such rule"
            found.append(f"An earlier `init` has left {describe(rule)}; by the settings it should be {should}.")
    return found


def shared(rules: Iterable[Mapping[str, Any]], layout: Layout) -> list[str]:
    """What our rules delete of others, a sentence."""
    chords = _rule(layout, "chords", layout.chords)["ID"]
    if layout.base or all(rule.get("ID") != chords or rule.get("Status") != "Enabled" for rule in rules):
        return []
    where = f"whatever else stands under {layout.chords!r} in this bucket"
    remedy = "set base_path, or give the results a bucket of their own"
    return [f"base_path is empty, so the rule for chords deletes {where}: {remedy}."]


def _harm(rule: Mapping[str, Any], layout: Layout, terms: Terms) -> Iterator[str]:
    there_are = [kind for kind in EXPIRING if kind is not MESSAGES or terms.messages]
    hit = [kind for kind in there_are if _overlap(layout.prefix(kind), _prefix(rule))]
    expiration, name = rule.get("Expiration", {}), f"The lifecycle rule {rule.get('ID', '')!r}"
    days = expiration.get("Days", math.inf)
    early = [kind for kind in hit if (term := terms.of_all(kind)) is None or days < _days(term)]
    if hit and "Date" in expiration:
        yield f"{name} deletes {_listed(hit)} from {expiration['Date']} on, whatever their age."
    elif early and "Days" in expiration:
        yield f"{name} deletes {_listed(early)} after {_counted(expiration['Days'])}, before they expire."
    classes = [one.get("StorageClass", "") for one in rule.get("Transitions") or [rule.get("Transition", {})]]
    if hit and any(classes):
        harm = "where they cannot be read" if set(classes) & set(_ARCHIVES) else "which makes small objects dearer"
        yield f"{name} moves {_listed(hit)} to {', '.join(filter(None, classes))}, {harm}."


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _listed(kinds: Iterable[Kind]) -> str:
    return ", ".join("saved groups" if kind is GROUPS else kind.name for kind in kinds)


# -- reading a rule


def _prefix(rule: Mapping[str, Any]) -> str:
    where = rule.get("Filter") or {}
    return str(where.get("Prefix") or where.get("And", {}).get("Prefix") or rule.get("Prefix") or "")


def _tags(rule: Mapping[str, Any]) -> set[tuple[str, str]]:
    where = rule.get("Filter") or {}
    tags = [*([where["Tag"]] if "Tag" in where else []), *where.get("And", {}).get("Tags", [])]
    return {(tag["Key"], tag["Value"]) for tag in tags}


def _sized(rule: Mapping[str, Any]) -> bool:
    """Whether the rule is for objects of some sizes only."""
    where = rule.get("Filter") or {}
    return any(name.startswith("ObjectSize") for name in (*where, *where.get("And", {})))


def describe(rule: Mapping[str, Any]) -> str:
    """What a rule does, in a line: as ``celery-s3-1f0a9c2e-results: delete results/celery-task-meta-* after 1 day``."""
    where = f"{_prefix(rule)}*" + "".join(f" tagged {key}={value}" for key, value in sorted(_tags(rule)))
    where += " of some sizes" if _sized(rule) else ""
    done = "; ".join(_actions(rule, where)) or f"nothing to {where}"
    text = f"{rule.get('ID') or 'a rule without a name'}: {done}"
    return text if rule.get("Status") == "Enabled" else f"{text} (disabled)"


def _actions(rule: Mapping[str, Any], where: str) -> Iterator[str]:
    expiration = rule.get("Expiration", {})
    if "Days" in expiration:
        yield f"delete {where} after {_counted(expiration['Days'])}"
    if "Date" in expiration:
        yield f"delete {where} from {expiration['Date']} on"
    if expiration.get("ExpiredObjectDeleteMarker"):
        yield f"remove the last delete marker of {where}"
    if "NoncurrentVersionExpiration" in rule:
        yield f"remove old versions after {_counted(rule['NoncurrentVersionExpiration'].get('NoncurrentDays', 0))}"
    for one in rule.get("Transitions") or filter(None, [rule.get("Transition")]):
        when = _counted(one["Days"]) if "Days" in one else one.get("Date")
        yield f"move {where} to {one.get('StorageClass')} after {when}"
    if "AbortIncompleteMultipartUpload" in rule:
        days = rule["AbortIncompleteMultipartUpload"].get("DaysAfterInitiation", 0)
        yield f"abort uploads to {where} that are unfinished after {_counted(days)}"


def _counted(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"
