"""Lifecycle rules: what there should be, among other people's, and what they are worth."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.errors import ConfigurationError
from celery_s3.expiry.rules import LIMIT, covers, describe, hazards, merge, outdated, shared, wanted
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.keys import Layout
from celery_s3.metadata import EXPIRY_TAG, EXPIRY_TAG_DAYS, expiry_tags, term_metadata

LAYOUT = Layout("results/")
BARE = Layout()
OTHERS = Layout("other/")

seconds = st.one_of(st.none(), st.floats(0.001, 400 * DAY), st.integers(1, 400 * DAY))


def terms(results=DAY, failures=DAY, chords=15 * DAY, messages=None):
    return Terms(results, failures, chords, 15 * DAY, messages)


def kinds(rules):
    return {rule["ID"].split("-", 3)[3]: rule for rule in rules}


def foreign(prefix="logs/", days=30, **more):
    return {
        "ID": f"logs {prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": days},
    } | more


any_rule = st.builds(
    foreign, st.sampled_from(["", "logs/", "results/", "results/celery-task-meta-a", "other/"]), st.integers(1, 900)
)


# -- wanted


def test_by_prefix():
    """Results, files, groups, chords and messages each have a rule for their prefix, and one for stale uploads."""
    rules = kinds(wanted(LAYOUT, terms(results=3600, failures=3600, messages=15 * DAY)))
    found = {kind: (rule["Filter"], rule.get("Expiration")) for kind, rule in rules.items()}
    assert found == {
        "results": ({"Prefix": LAYOUT.results}, {"Days": 1}),
        "files": ({"Prefix": LAYOUT.files}, {"Days": 2}),
        "groups": ({"Prefix": LAYOUT.groups}, {"Days": 1}),
        "chords": ({"Prefix": LAYOUT.chords}, {"Days": 15}),
        "messages": ({"Prefix": LAYOUT.messages}, {"Days": 15}),
        "uploads-results": ({"Prefix": LAYOUT.results}, None),
        "uploads-files": ({"Prefix": LAYOUT.files}, None),
        "uploads-groups": ({"Prefix": LAYOUT.groups}, None),
        "uploads-chords": ({"Prefix": LAYOUT.chords}, None),
        "uploads-messages": ({"Prefix": LAYOUT.messages}, None),
    }
    assert rules["uploads-results"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert all(rule["Status"] == "Enabled" and len(rule["ID"]) <= 255 for rule in rules.values())


@pytest.mark.parametrize(
    ("results", "failures", "days"),
    [(1, 1, 1), (DAY, DAY, 1), (DAY + 1, DAY, 2), (DAY, 7 * DAY, 7), (7 * DAY, DAY, 7), (DAY / 2, DAY * 1.5, 2)],
)
def test_days_are_rounded_up(results, failures, days):
    """Whole days, enough for successes and failures alike: nothing is deleted before it expires."""
    assert kinds(wanted(LAYOUT, terms(results, failures)))["results"]["Expiration"] == {"Days": days}


@given(results=seconds, failures=seconds, chords=seconds)
def test_no_rule_is_too_short(results, failures, chords):
    """Whatever the terms: every rule gives what it deletes at least its time, and what lives for ever has none."""
    rules = kinds(wanted(LAYOUT, terms(results, failures, chords)))
    for kind, needed in (
        ("results", [results, failures]),
        ("files", [results and results + DAY]),
        ("groups", [results]),
        ("chords", [chords]),
    ):
        if None in needed:
            assert kind not in rules
        else:
            days = rules[kind]["Expiration"]["Days"]
            assert days * DAY >= max(needed) > (days - 1) * DAY


def test_by_tag():
    """With tags each result, and a day later each file, has the rule of its own time, else of `result_expires`."""
    rules = kinds(wanted(LAYOUT, terms(results=3 * DAY, failures=None), by_tag=True))
    for name, prefix, slack in (("results", LAYOUT.results, 0), ("files", LAYOUT.files, 1)):
        tagged = {}
        for kind, rule in rules.items():
            if kind.startswith(f"{name}-"):
                where = rule["Filter"]["And"]
                assert where["Prefix"] == prefix
                (tag,) = where["Tags"]
                assert tag["Key"] == EXPIRY_TAG
                tagged[tag["Value"]] = rule["Expiration"]["Days"]
        assert tagged == {"default": 3 + slack, **{str(days): days + slack for days in EXPIRY_TAG_DAYS}}
        assert name not in rules
    assert len({rule["ID"] for rule in rules.values()}) == len(rules)


def test_files_of_callers():
    """Where results stay for ever, there is a rule for files that no result belongs to; else they are among all."""
    for by_tag in (False, True):
        rule = kinds(wanted(LAYOUT, terms(None, None), by_tag=by_tag))["files-sent"]
        assert (rule["Filter"], rule["Expiration"]) == ({"Prefix": LAYOUT.files + "~sent/"}, {"Days": 16})
        assert "files-sent" not in kinds(wanted(LAYOUT, terms(), by_tag=by_tag))


def test_others_objects():
    """With an empty base_path, every rule is for a prefix that names us or Celery."""
    for rule in wanted(BARE, terms(messages=DAY)):
        assert rule["Filter"]["Prefix"].startswith("celery-")


@given(st.none() | st.floats(0, 1000 * DAY, allow_nan=False))
def test_a_tag_is_never_too_short(term):
    """The tag of a result with a term of its own names days that are enough; one for ever has none."""
    metadata = {"celery-state": "SUCCESS", **term_metadata(term)}
    found = expiry_tags(metadata)
    if term is None:
        assert found == {EXPIRY_TAG: "default"}
    elif not term or term > 365 * DAY:
        assert found == {}
    else:
        assert int(found[EXPIRY_TAG]) * DAY >= term


def test_versions():
    """In a bucket with versions, what was deleted is removed a day later; without, nothing is said of it."""
    rules = kinds(wanted(LAYOUT, terms(), versioned=True))
    assert rules["results"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 1}
    assert "NoncurrentVersionExpiration" not in kinds(wanted(LAYOUT, terms()))["results"]


# -- merge


@given(st.lists(any_rule, max_size=6), st.integers(0, 6), st.booleans())
def test_foreign_rules_stay(others, at, by_tag):
    """Other rules keep content and order, ours are brought up to date where they stand; again, it changes nothing."""
    stale = wanted(LAYOUT, terms(results=9 * DAY, messages=DAY), by_tag=not by_tag)
    existing = [*others[:at], *stale, *others[at:]]
    before = copy.deepcopy(existing)
    new = wanted(LAYOUT, terms(), by_tag=by_tag)
    merged = merge(existing, new)
    assert existing == before
    assert [rule for rule in merged if not rule["ID"].startswith("celery-s3-")] == others
    assert sorted((rule for rule in merged if rule["ID"].startswith("celery-s3-")), key=str) == sorted(new, key=str)
    assert merge(merged, new) == merged


def test_other_deployments_stay():
    """Two apps that share a bucket leave each other's rules alone."""
    mine, theirs = wanted(LAYOUT, terms()), wanted(OTHERS, terms(7 * DAY))
    assert merge(merge(theirs, mine), wanted(OTHERS, terms(DAY)))[len(theirs) :] == mine
    assert merge(theirs, mine) == theirs + mine


def test_a_disabled_rule_of_ours_is_enabled():
    """A rule of ours is what it should be afterwards."""
    stale = [{**rule, "Status": "Disabled"} for rule in wanted(LAYOUT, terms())]
    assert merge(stale, wanted(LAYOUT, terms())) == wanted(LAYOUT, terms())


def test_old_style():
    """Beside rules with `Prefix` at their top, ours have it there too: S3 refuses a mixture."""
    old = {"ID": "before 2016", "Prefix": "logs/", "Status": "Enabled", "Expiration": {"Days": 3}}
    merged = merge([old], wanted(LAYOUT, terms()))
    assert merged[0] == old
    assert all("Filter" not in rule and rule["Prefix"].startswith("results/") for rule in merged[1:])
    assert merge(merged, wanted(LAYOUT, terms())) == merged
    assert covers(merged, wanted(LAYOUT, terms()))
    with pytest.raises(ConfigurationError, match=r"'before 2016' .*Put that rule's Prefix into a Filter"):
        merge([old], wanted(LAYOUT, terms(), by_tag=True))


def test_too_many_rules():
    """More than S3 allows is an error that counts them."""
    full = [foreign(f"logs/{number}/") for number in range(LIMIT - len(wanted(LAYOUT, terms())))]
    assert len(merge(full, wanted(LAYOUT, terms()))) == LIMIT
    with pytest.raises(ConfigurationError, match=r"1001; S3 allows 1000\. Remove 1 of them"):
        merge([*full, foreign()], wanted(LAYOUT, terms()))


# -- covers


def test_ours_cover():
    """The rules that there should be cover what there should be, also among others."""
    for by_tag in (False, True):
        rules = wanted(LAYOUT, terms(), by_tag=by_tag)
        assert covers([foreign(), *rules], rules)
        for left_out in [rule for rule in rules if "Expiration" in rule]:
            assert not covers([rule for rule in rules if rule != left_out], rules)


@pytest.mark.parametrize(
    ("rule", "enough"),
    [
        (foreign("", 1), True),
        (foreign("results/", 1), True),
        (foreign("results/", 2), False),
        (foreign("results/celery-task-meta-a", 1), False),
        (foreign("results/", 1, Status="Disabled"), False),
        (foreign("", 1, Filter={}), True),
        (foreign("", 1, Filter={"And": {"Prefix": "results/", "ObjectSizeGreaterThan": 1}}), False),
        (foreign("", 1, Filter={"ObjectSizeLessThan": 10**9}), False),
        (foreign("", 1, Filter={"Tag": {"Key": "a", "Value": "b"}}), False),
        (foreign("", 1, Expiration={"Date": datetime(2020, 1, 1, tzinfo=UTC)}), False),
        ({"ID": "old", "Prefix": "", "Status": "Enabled", "Expiration": {"Days": 1}}, True),
        ({"ID": "abort", "Filter": {}, "Status": "Enabled", "AbortIncompleteMultipartUpload": {}}, False),
    ],
)
def test_what_covers(rule, enough):
    """Only an enabled rule that deletes everything there, in time, and with no condition that may not hold."""
    needed = [kinds(wanted(LAYOUT, terms()))["results"]]
    assert covers([rule], needed) is enough


# -- hazards


def test_hazards():
    """Rules that delete what has not expired, or move it away, are named with what they do; harmless ones are not."""
    rules = [
        foreign("", 1),
        foreign("results/celery-taskset", 9),
        foreign("logs/", 1),
        foreign("results/", 1, Status="Disabled"),
        foreign("results/", 400, Transitions=[{"Days": 1, "StorageClass": "GLACIER"}]),
        foreign("results/", 400, ID="date", Expiration={"Date": "2030-01-01"}),
        *wanted(LAYOUT, terms()),
    ]
    found = hazards(rules, LAYOUT, terms(results=2 * DAY, failures=2 * DAY))
    kinds = "results, files, saved groups, chords"
    assert found == [
        f"The lifecycle rule 'logs ' deletes {kinds} after 1 day, before they expire.",
        f"The lifecycle rule 'logs results/' moves {kinds} to GLACIER, where they cannot be read.",
        f"The lifecycle rule 'date' deletes {kinds} from 2030-01-01 on, whatever their age.",
    ]


def test_an_empty_base_is_a_hazard():
    """Without a base_path the rule for chords, where it stands, is for a folder that may be anybody's."""
    rules = wanted(BARE, terms())
    (found,) = shared(rules, BARE)
    assert "base_path is empty" in found
    assert shared([{**rule, "Status": "Disabled"} for rule in rules], BARE) == []
    assert shared(wanted(BARE, Terms.of({}, None)), BARE) == []
    assert shared(wanted(LAYOUT, terms()), LAYOUT) == []


def test_rules_by_tags():
    """Another's rule with tags is a hazard only to objects that may have all of them."""
    tags = [{"Key": "team", "Value": "ops"}, {"Key": "kind", "Value": "temporary"}]
    rule = foreign(Filter={"And": {"Prefix": "", "Tags": tags}}, days=1)
    week = terms(results=7 * DAY, failures=7 * DAY)
    assert hazards([rule], LAYOUT, week) == hazards([rule], LAYOUT, week, {"team": "ops"}) == []
    assert hazards([rule], LAYOUT, week, {"team": "ops", "kind": "temporary"})
    assert hazards([foreign(Filter={"Tag": {"Key": EXPIRY_TAG, "Value": "default"}}, days=1)], LAYOUT, week)


@pytest.mark.parametrize("by_tag", [False, True])
@pytest.mark.parametrize(
    ("results", "should"), [(30 * DAY, ("after 30 days", "after 31 days")), (None, "no such rule")]
)
def test_rules_of_an_earlier_init(by_tag, results, should):
    """A rule of ours that is shorter than the settings say by now, or that they do not ask for, is named with both."""
    standing = [foreign(), *wanted(OTHERS, terms()), *wanted(LAYOUT, terms(), by_tag=by_tag)]
    found = outdated(standing, wanted(LAYOUT, terms(results, results), by_tag=by_tag))
    assert len(found) == 3
    assert all("; by the settings it should be" in one and one.removesuffix(".").endswith(should) for one in found)
    assert outdated([{**rule, "Status": "Disabled"} for rule in standing], wanted(LAYOUT, terms(results))) == []


def test_tags_are_switched_on():
    """The rule without tags still deletes what lives longer by its own term; a rule that is too long harms nothing."""
    results, files = outdated(wanted(LAYOUT, terms()), wanted(LAYOUT, terms(), by_tag=True))
    assert "-results: delete results/celery-task-meta-* after 1 day" in results
    assert "-files: delete results/celery-files/* after 2 days" in files
    assert outdated(wanted(LAYOUT, terms(results=9 * DAY)), wanted(LAYOUT, terms())) == []


# -- describe


def test_describe():
    """Each rule is a line that a person understands."""
    rules = wanted(LAYOUT, terms(), by_tag=True, versioned=True)
    uploads, default = kinds(rules)["uploads-groups"], kinds(rules)["results-default"]
    assert describe(uploads).endswith(
        "-uploads-groups: abort uploads to results/celery-taskset-meta-* that are unfinished after 1 day"
    )
    assert describe(default).endswith(
        "-results-default: delete results/celery-task-meta-* tagged celery-s3-expires=default after 1 day;"
        " remove old versions after 1 day"
    )
    assert describe(foreign(Status="Disabled")) == "logs logs/: delete logs/* after 30 days (disabled)"
    assert describe({"Status": "Enabled", "Filter": {}}) == "a rule without a name: nothing to *"


# -- terms


def conf(**values):
    return {"task_serializer": "json", "accept_content": ["json"], **values}


def test_terms_of_the_configuration():
    """Celery's settings, by its rules: what is not set follows `result_expires`, 0 and None are for ever."""
    assert Terms.of(conf(), DAY) == Terms(DAY, DAY, 15 * DAY, 15 * DAY, None)
    assert Terms.of(conf(), None) == Terms(None, None, None, 15 * DAY, None)
    assert Terms.of(conf(), 0) == Terms(None, None, None, 15 * DAY, None)
    given = conf(result_failure_expires=timedelta(days=7), result_chord_expires=30 * DAY)
    assert Terms.of(given, DAY) == Terms(DAY, 7 * DAY, 30 * DAY, 30 * DAY, None)
    assert Terms.of(conf(result_failure_expires=0, result_chord_expires=0), DAY) == Terms(
        DAY, None, None, 15 * DAY, None
    )
    assert Terms.of(conf(result_chord_expires=60), DAY).chords == 15 * DAY
    for claims in ({"task_serializer": "s3+json"}, {"accept_content": ["json", "application/x-celery-s3+json"]}):
        assert Terms.of(conf(**claims), DAY).messages == 15 * DAY


@pytest.mark.parametrize("value", ["soon", -1, float("nan"), float("inf"), 10**400, object()])
def test_terms_that_make_no_sense(value):
    """A setting that is no length of time is a clear error when the backend is made."""
    with pytest.raises(ConfigurationError, match="result_failure_expires is "):
        Terms.of(conf(result_failure_expires=value), DAY)
    with pytest.raises(ConfigurationError, match="result_expires is -1"):
        Terms.of(conf(), -1)
