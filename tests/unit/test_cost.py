"""Requests and bytes to dollars."""

import pytest

from celery_s3.costs import prices
from celery_s3.errors import ConfigurationError


@pytest.fixture
def standard():
    return prices.price_table()["s3-standard"]


def test_a_million_results(standard):
    """A million results stored and fetched once cost $5.40 at list price."""
    assert prices.requests_cost({"PUT": 10**6, "GET": 10**6}, standard) == pytest.approx(5.40)


def test_deletes_are_free(standard):
    """Deleting costs nothing; listing costs as much as writing."""
    assert prices.requests_cost({"DELETE": 10**6, "DELETE_OBJECTS": 10**3}, standard) == 0
    assert prices.requests_cost({"LIST": 1000}, standard) == pytest.approx(0.005)


def test_unknown_verb(standard):
    """A verb without a price is an error rather than free."""
    with pytest.raises(KeyError):
        prices.requests_cost({"BREW": 1}, standard)


def test_storage(standard):
    """A gibibyte for a month is the table's price, for a day a thirtieth."""
    assert prices.storage_cost(2**30, 30, standard) == pytest.approx(0.023)
    assert prices.storage_cost(2**30, 1, standard) == pytest.approx(0.023 / 30)


def test_table_is_dated():
    """Every price names its date and source."""
    assert set(prices.price_table()) == {"s3-standard", "s3-express"}
    assert all(
        prices.date.year >= 2026 and "aws.amazon.com" in prices.source for prices in prices.price_table().values()
    )


def test_other_table(tmp_path):
    """Another table can be given; one that is not usable is named."""
    file = tmp_path / "prices.toml"
    file.write_text('date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = 1\nget = 2\nstorage = 3\n')
    assert prices.price_table(file)["mine"].put == 1


@pytest.mark.parametrize(
    "text",
    [
        "put = ",
        "",
        'date = 2026-05-01\nsource = "x"',
        'source = "x"\n[mine]\ntitle = "Mine"\nput = 1\nget = 2\nstorage = 3',
        'date = "soon"\nsource = "x"\n[mine]\ntitle = "Mine"\nput = 1\nget = 2\nstorage = 3',
        'date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = 1\nstorage = 3',
        'date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = -1\nget = 2\nstorage = 3',
        'date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = nan\nget = 2\nstorage = 3',
        'date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = "1"\nget = 2\nstorage = 3',
    ],
)
def test_unusable_table(tmp_path, text):
    """A table that is not usable is named, whatever is wrong with it."""
    file = tmp_path / f"broken-{abs(hash(text))}.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"broken-\d+\.toml"):
        prices.price_table(file)


def test_express_as_amazon_reckons():
    """The example of Amazon's FAQ: 10 GB for a month, a million PUT and nine million GET of 10 KB are $2.58."""
    express = prices.price_table()["s3-express"]
    requests = prices.requests_cost({"PUT": 10**6, "GET": 9 * 10**6}, express)
    moved = prices.transfer_cost(10 * 1024 * 10**6, 9 * 10 * 1024 * 10**6, express)
    assert requests == pytest.approx(1.13 + 0.27)
    assert moved == pytest.approx(0.03 + 0.05, abs=0.005)
    assert requests + moved + prices.storage_cost(10 * 2**30, 30, express) == pytest.approx(2.58, abs=0.005)


def test_bill(standard):
    """A process's counts become lines: throttles, conflicts of both kinds, dollars."""
    put = {"requests": 1000, "retries": 2, "bytes_up": 5, "bytes_down": 0}
    (item,) = prices.bill({"PUT": {**put, "Throttled": 1, "Conflict": 2, "PreconditionFailed": 3}}, standard)
    assert (item.verb, item.retries, item.throttles, item.conflicts) == ("PUT", 2, 1, 5)
    assert item.dollars == pytest.approx(0.005)


def test_which_table():
    """The name of a directory bucket says that it is S3 Express."""
    assert prices.prices_name("results") == "s3-standard"
    assert prices.prices_name("results--use1-az4--x-s3") == "s3-express"
