"""``billing customers``, ``skus`` and ``credits`` on real servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import redis
from commandline import Billing

from billing.container import Container
from billing.core.clock import format_instant
from billing.core.reservation import HoldRequest, ReserveOutcome

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def load(container: Container, customer: str) -> None:
    container.account_loader.rebuild(customer)


def test_a_customer_is_added_and_listed(billing: Billing):
    added = billing.json(
        "customers", "add", "acme", "Acme GmbH", "--time-zone", "Europe/Berlin",
        "--stripe-customer-id", "cus_1",
    )  # fmt: skip
    assert added | {"created_at": ""} == {
        "customer": "acme",
        "name": "Acme GmbH",
        "status": "active",
        "time_zone": "Europe/Berlin",
        "stripe_customer_id": "cus_1",
        "stripe_deleted_at": None,
        "created_at": "",
    }
    assert billing.json("customers", "list") == [added]
    table = billing.table("customers", "list")
    assert "acme" in table
    assert "Europe/Berlin" in table


def test_an_empty_list_says_how_to_add_one(billing: Billing):
    assert "billing customers add" in billing.table("customers", "list")
    assert billing.json("customers", "list") == []
    assert "billing skus add" in billing.table("skus", "list")
    assert billing.json("skus", "list") == []


def test_adding_a_customer_again_is_no_error_and_with_other_content_is_one(billing: Billing):
    billing.run("customers", "add", "acme", "Acme")
    billing.run("customers", "add", "acme", "Acme")
    assert "with name='Acme', not 'Other'" in billing.error("customers", "add", "acme", "Other")


def test_an_error_names_the_field_the_value_and_the_remedy(
    billing: Billing, acme: str, subtests: pytest.Subtests
):
    for arguments, said in [
        (("customers", "add", "a|b", "Acme"), "customer='a|b': use letters"),
        (("customers", "add", "acme", "Acme", "--time-zone", "Berlin"), "time_zone='Berlin'"),
        (("customers", "show", "nobody"), "no customer 'nobody'"),
        (("customers", "suspend", "nobody"), "customers list"),
        (("customers", "budget", "acme", "*", "-1"), "limit='-1'"),
        (("customers", "budget", "acme", "*", "1.0000001"), "at most six decimals"),
        (("customers", "budget", "acme", "no-sku", "5"), "no SKU 'no-sku'"),
        (("credits", "grant", "acme", "0", "--reference", "r"), "at least one microcredit"),
        (("credits", "grant", "acme", "1e3", "--reference", "r"), "amount='1e3'"),
        (("credits", "grant", "nobody", "1", "--reference", "r"), "no customer 'nobody'"),
        (("credits", "balance", "nobody"), "no customer 'nobody'"),
        (("skus", "add", "Page", "--price", "1"), "sku='Page'"),
        (("skus", "add", "page", "--price", "x"), "price='x'"),
        (("skus", "add", "page", "--price", "1", "--hold", "5"), "use pricing=measured"),
        (("skus", "add", "p", "--price", "1", "--on-unavailable", "allow"), "allow_limit=0"),
        (("skus", "price", "nothing", "1"), "no SKU 'nothing'"),
        (("skus", "price", "page-capture", "1", "--from", "tomorrow"), "RFC 3339"),
        (("skus", "price", "page-capture", "2", "--from", "2021-01-01T00:00:00Z"), "never change"),
    ]:
        with subtests.test(arguments=arguments, said=said):
            assert acme == "acme"
            # A negative number is not an option: everything after "--" is an argument.
            shown = [*arguments[:2], "--", *arguments[2:]] if "-1" in arguments else list(arguments)
            message = billing.error(*shown)
            assert message.startswith("error: ")
            assert said in message


def test_wrong_usage_exits_with_two(billing: Billing, subtests: pytest.Subtests):
    for arguments in [
        ("customers", "add", "acme"),
        ("customers", "nonsense"),
        ("nonsense",),
        ("credits", "grant", "acme", "5"),
        ("skus", "add", "page"),
        ("skus", "add", "page", "--price", "1", "--on-denial", "shrug"),
        ("customers", "list", "--nonsense"),
    ]:
        with subtests.test(arguments=arguments):
            billing.error(*arguments, code=2)


def test_suspending_reaches_redis_at_once(billing: Billing, container: Container, acme: str):
    load(container, acme)
    assert billing.json("customers", "suspend", acme)["status"] == "suspended"
    account = container.quota.account(acme)
    assert account is not None
    assert account.suspended
    assert "is active" in billing.table("customers", "resume", acme)
    account = container.quota.account(acme)
    assert account is not None
    assert not account.suspended


def test_a_budget_is_set_shown_and_taken_away(billing: Billing, container: Container, acme: str):
    load(container, acme)
    set_ = billing.json("customers", "budget", acme, "page-capture", "2.5")
    assert set_ == {"customer": acme, "sku": "page-capture", "limit_microcredits": 2_500_000}
    billing.run("customers", "budget", acme, "*", "50")
    shown = billing.json("customers", "show", acme)
    assert [each["sku"] for each in shown["budgets"]] == ["*", "page-capture"]
    account = container.quota.account(acme)
    assert account is not None
    assert dict(account.budgets) == {"*": 50_000_000, "page-capture": 2_500_000}
    table = billing.table("customers", "show", acme)
    assert "all SKUs together" in table
    assert "2.5" in table
    assert billing.json("customers", "budget", acme, "*", "none") is None
    assert "no budget" in billing.table("customers", "budget", acme, "page-capture", "none")
    assert billing.json("customers", "show", acme)["budgets"] == []


def test_a_grant_is_given_once_and_reaches_redis(billing: Billing, container: Container, acme: str):
    load(container, acme)
    first = billing.json("credits", "grant", acme, "12.5", "--reference", "order-1")
    assert first["amount_microcredits"] == 12_500_000
    assert first["existed"] is False
    again = billing.json("credits", "grant", acme, "12.5", "--reference", "order-1")
    assert again == first | {"existed": True}
    assert "nothing changed" in billing.table(
        "credits", "grant", acme, "12.5", "--reference", "order-1"
    )
    assert "12.5 credits, not 13" in billing.error(
        "credits", "grant", acme, "13", "--reference", "order-1"
    )
    account = container.quota.account(acme)
    assert account is not None
    assert account.granted_microcredits == 112_500_000


def test_a_balance_has_both_sides_and_the_grants(billing: Billing, container: Container, acme: str):
    load(container, acme)
    held = container.quota.reserve(
        HoldRequest(
            task_id="t-1",
            customer=acme,
            sku="page-capture",
            amount_microcredits=3_000_000,
            ttl_seconds=60,
        )
    )
    assert held.outcome is ReserveOutcome.HELD
    balance = billing.json("credits", "balance", acme)
    assert balance["granted_microcredits"] == 100_000_000
    assert balance["logged_microcredits"] == balance["settled_microcredits"] == 0
    assert balance["held_microcredits"] == 3_000_000
    assert balance["available_microcredits"] == 97_000_000
    assert balance["redis_error"] is None
    assert [each["reference"] for each in balance["grants"]] == ["tests"]
    assert "97" in billing.table("credits", "balance", acme)
    everyone = billing.json("credits", "balance")
    assert [each["customer"] for each in everyone] == [acme]
    assert acme in billing.table("credits", "balance")


def test_a_balance_that_redis_has_wrong_is_rebuilt(
    billing: Billing, container: Container, acme: str
):
    container.account_loader.rebuild(acme)
    right = container.quota.account(acme)
    assert right is not None
    container.redis.hincrby(container.keys.account(acme), "settled", 7)

    rebuilt = billing.json("credits", "rebuild", acme)

    after = container.quota.account(acme)
    assert after is not None
    assert rebuilt["outcome"] == "loaded"
    assert after.settled_microcredits == right.settled_microcredits
    assert after.epoch == right.epoch + 1
    assert "loaded" in billing.table("credits", "rebuild", acme)
    assert "nobody" in billing.error("credits", "rebuild", "nobody")


def test_a_balance_without_an_account_in_redis_is_postgresqls(billing: Billing, acme: str):
    balance = billing.json("credits", "balance", acme)
    assert balance["granted_microcredits"] == 100_000_000
    assert balance["available_microcredits"] is None
    assert "loads it from PostgreSQL" in billing.table("credits", "balance", acme)


def test_without_redis_a_grant_is_kept_and_the_warning_says_what_it_means(
    billing: Billing, container: Container, acme: str
):
    billing.environment["WEIGHBRIDGE_REDIS_URL"] = "redis://127.0.0.1:1/0"
    result = billing.run("credits", "grant", acme, "5", "--reference", "order-1")
    assert "PostgreSQL has it; Redis gets it with the next balance check" in result.stderr
    assert container.grants.granted(acme) == 105_000_000
    shown = billing.json("credits", "balance", acme)
    assert shown["granted_microcredits"] == 105_000_000
    assert shown["redis_error"]


def test_without_postgresql_the_message_is_clean(billing: Billing):
    billing.environment["WEIGHBRIDGE_DATABASE_URL"] = "postgresql://nobody:secret@127.0.0.1:1/none"
    message = billing.error("customers", "list")
    assert "PostgreSQL" in message
    assert "DATABASE_URL" in message
    assert "secret" not in message


def test_debug_shows_where_an_error_comes_from(billing: Billing):
    result = billing.run("--debug", "customers", "show", "nobody", code=1)
    assert result.exception is not None
    assert "no customer 'nobody'" in str(result.exception)


def test_a_setting_that_cannot_be_right_is_named_without_its_value(billing: Billing):
    billing.environment["WEIGHBRIDGE_RELAY_BATCH"] = "lots-of-secrets"
    message = billing.error("customers", "list")
    assert "WEIGHBRIDGE_RELAY_BATCH" in message or "relay_batch" in message
    assert "lots-of-secrets" not in message


def test_skus_have_documented_keys(billing: Billing):
    billing.run(
        "skus", "add", "forensic-search", "--price", "0.5", "--unit", "page", "--measured",
        "--hold", "50", "--on-failure", "charge", "--on-denial", "defer",
        "--on-unavailable", "allow", "--allow-limit", "3", "--description", "Crawls a site",
    )  # fmt: skip
    (sku,) = billing.json("skus", "list")
    prices = sku.pop("prices")
    assert sku == {
        "sku": "forensic-search",
        "description": "Crawls a site",
        "unit": "page",
        "pricing": "measured",
        "hold_quantity": 50,
        "failure_policy": "charge",
        "denial_policy": "defer",
        "unavailable_policy": "allow",
        "allow_limit": 3,
        "meter_decimals": 6,
        "admission": "exact",
        "unit_price_microcredits": 500_000,
    }
    assert [each["unit_price_microcredits"] for each in prices] == [500_000]
    table = billing.table("skus", "list")
    assert "forensic-search" in table
    assert "allow 3" in table


def test_a_sku_can_be_leased_from_the_start_or_later(billing: Billing):
    billing.run("skus", "add", "page-capture", "--price", "1")
    added = billing.json("skus", "add", "search", "--price", "1", "--admission", "leased")
    assert added["admission"] == "leased"
    told = billing.run("skus", "admission", "page-capture", "leased").stdout
    assert "page-capture is admitted leased" in told
    assert billing.table("skus", "list").count("leased") == 2
    assert [sku["admission"] for sku in billing.json("skus", "list")] == ["leased", "leased"]


def test_a_price_can_be_announced(billing: Billing):
    billing.run("skus", "add", "page-capture", "--price", "1")
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    priced = billing.json("skus", "price", "page-capture", "2", "--from", format_instant(begin))
    assert priced["unit_price_microcredits"] == 1_000_000
    assert priced["prices"][1] == {
        "unit_price_microcredits": 2_000_000,
        "effective_from": format_instant(begin),
    }
    assert "2 from" in " ".join(billing.table("skus", "list").split())


def test_a_price_from_now_on_says_when_workers_know_it(billing: Billing):
    billing.run("skus", "add", "page-capture", "--price", "1")
    assert "within 30 seconds" in billing.table("skus", "price", "page-capture", "2")


def test_what_a_customer_wrote_cannot_act_on_the_terminal(
    billing: Billing, container: Container, acme: str
):
    with container.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE customers SET name = E'[red]a\\x1b[2Jb'")
    table = billing.table("customers", "show", acme)
    assert "\x1b" not in table
    assert "[red]a\\x1b[2Jb" in table


def test_the_longest_names_still_fit_the_width(billing: Billing, container: Container):
    billing.run("customers", "add", "x" * 64, "N" * 200, "--stripe-customer-id", "c" * 200)
    billing.run("credits", "grant", "x" * 64, "9000000000", "--reference", "r" * 200)
    billing.run("skus", "add", "s" * 64, "--price", "9000000000", "--unit", "u" * 200)
    billing.run("customers", "budget", "x" * 64, "s" * 64, "9000000000")
    load(container, "x" * 64)
    for arguments in (
        ("customers", "list"),
        ("customers", "show", "x" * 64),
        ("credits", "balance"),
        ("credits", "balance", "x" * 64),
        ("skus", "list"),
    ):
        billing.table(*arguments)


def test_commands_leave_no_connection_open(billing: Billing, container: Container, acme: str):
    for _ in range(3):
        billing.run("customers", "show", acme)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with container.engine.connect() as connection:
        # The test's own engine and this connection; none of the three commands'.
        assert connection.exec_driver_sql(count).scalar_one() <= 3


def test_redis_keys_stay_under_the_tests_prefix(
    billing: Billing, container: Container, redis_client: redis.Redis, acme: str
):
    load(container, acme)
    billing.run("customers", "suspend", acme)
    assert redis_client.exists(container.keys.account(acme))
