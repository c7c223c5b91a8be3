"""Requests and bytes to dollars."""

import pytest

from celery_s3 import cost
from celery_s3.errors import ConfigurationError


@pytest.fixture
def standard():
    return cost.price_table()["s3-standard"]


def test_a_million_results(standard):
    """A million results stored and fetched once cost $5.40 at list price."""
    assert cost.requests_cost({"PUT": 10**6, "GET": 10**6}, standard) == pytest.approx(5.40)


def test_deletes_are_free(standard):
    """Deleting costs nothing; listing costs as much as writing."""
    assert cost.requests_cost({"DELETE": 10**6, "DELETE_OBJECTS": 10**3}, standard) == 0
    assert cost.requests_cost({"LIST": 1000}, standard) == pytest.approx(0.005)


def test_unknown_verb(standard):
    """A verb without a price is an error rather than free."""
    with pytest.raises(KeyError):
        cost.requests_cost({"BREW": 1}, standard)


def test_storage(standard):
    """A gibibyte for a month is the table's price, for a day a thirtieth."""
    assert cost.storage_cost(2**30, 30, standard) == pytest.approx(0.023)
    assert cost.storage_cost(2**30, 1, standard) == pytest.approx(0.023 / 30)


def test_table_is_dated():
    """Every price names its date and source."""
    assert set(cost.price_table()) == {"s3-standard", "s3-express"}
    assert all(prices.date.year >= 2026 and "aws.amazon.com" in prices.source for prices in cost.price_table().values())


def test_other_table(tmp_path):
    """Another table can be given; one that is not usable is named."""
    file = tmp_path / "prices.toml"
    file.write_text('date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = 1\nget = 2\nstorage = 3\n')
    assert cost.price_table(file)["mine"].put == 1
    broken = tmp_path / "broken.toml"
    broken.write_text("put = ")
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        cost.price_table(broken)
