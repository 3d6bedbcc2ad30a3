"""The names an app imports, and the tools it tests itself with."""

from __future__ import annotations

import doctest
import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from celery import Celery
from celery.backends.base import Backend

import workers
from billing import testing
from billing.core.credits import parse_credits
from billing.core.errors import InvalidValue
from billing.testing import ManualClock, MemorySystem, sku
from workers import errors


@pytest.mark.parametrize("name", workers.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(workers, name) is not None
    assert name in dir(workers)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'workers' has no attribute 'Meteringg'"):
        workers.Meteringg  # type: ignore[attr-defined]  # noqa: B018 - looking is what is tested


@pytest.mark.process
def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, workers\n"
        "print([name for name in ('celery', 'redis', 'billing') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.process
def test_public_names_stay_what_they_are_once_every_module_is_imported():
    program = (
        "import pkgutil, importlib, workers\n"
        "for found in pkgutil.iter_modules(workers.__path__, 'workers.'):\n"
        "    if found.name not in {'workers.celery', 'workers.flowerconfig'}:\n"
        "        importlib.import_module(found.name)\n"
        "print([n for n in workers.__all__ if type(getattr(workers, n)).__name__ == 'module'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


RAISED = [
    errors.QuotaExceeded("insufficient_credits", "acme", "fixed", 5, 3),
    errors.CustomerRequired("shop.render"),
    errors.NotMetered("shop.render"),
    errors.InvalidValue("quantity", -1, "count from 0"),
    errors.ConfigurationError("REDIS_URL", "is not set", "set it"),
    errors.NotFound("SKU", "nothing", "add it"),
    errors.QuotaUnavailable("Redis did not answer"),
    errors.PublishFailed("not confirmed"),
    errors.AlreadyExists("there"),
]


def test_all_of_them_are_in_one_tree():
    found = {getattr(errors, name) for name in errors.__all__} - {errors.DenialReason}
    assert {type(error) for error in RAISED} | {errors.WeighbridgeError} == found
    assert all(issubclass(error, errors.WeighbridgeError) for error in found)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_through_pickle_and_results(error: errors.WeighbridgeError):
    backend = Backend(app=Celery("errors", set_as_current=False))
    stored = json.loads(json.dumps(backend.prepare_exception(error, serializer="json")))
    for again in (pickle.loads(pickle.dumps(error)), backend.exception_to_python(stored)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.args == error.args


def test_a_refusal_comes_back_with_its_figures():
    again = pickle.loads(pickle.dumps(RAISED[0]))
    assert vars(again) == vars(RAISED[0])


def test_the_example_of_the_testing_module_runs():
    names = {
        **vars(testing),
        # Every app of this process gets the task: not under a name that beat's jobs begin with.
        "__name__": "shop",
        "Celery": Celery,
        "UTC": UTC,
        "datetime": datetime,
        "Metering": workers.Metering,
        "MeteredTask": workers.MeteredTask,
        "usage": workers.usage,
    }
    (example,) = doctest.DocTestFinder(recurse=False).find(testing, "testing", globs=names)
    assert len(example.examples) > 5
    ran = doctest.DocTestRunner(verbose=False).run(example)
    assert ran.failed == 0


def test_a_sku_for_tests_has_defaults_and_takes_overrides():
    simple = sku("page-render", price="2.5")
    assert simple.unit_price_at(datetime(1999, 1, 1, tzinfo=UTC)) == parse_credits("2.5")
    assert (simple.unit, simple.pricing, simple.hold_quantity) == ("unit", "fixed", 1)

    measured = sku(
        "search", price="1", unit="page", pricing="measured", hold_quantity=20,
        failure_policy="charge", denial_policy="defer", unavailable_policy="allow", allow_limit=3,
    )  # fmt: skip
    assert (measured.unit, measured.pricing, measured.hold_quantity) == ("page", "measured", 20)
    assert (measured.failure_policy, measured.denial_policy) == ("charge", "defer")
    assert (measured.unavailable_policy, measured.allow_limit) == ("allow", 3)


@pytest.mark.parametrize("wrong", [{"sku_id": "a:b"}, {"price": "much"}, {"price": "-1"}])
def test_a_sku_that_cannot_be_is_refused(wrong: dict[str, str]):
    given = {"sku_id": "page", "price": "1", **wrong}
    with pytest.raises(InvalidValue):
        sku(given.pop("sku_id"), **given)  # type: ignore[arg-type]


def test_a_policy_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="sometimes"):
        sku("page", price="1", failure_policy="sometimes")


def test_the_clock_of_a_system_in_memory_is_its_tests():
    clock = ManualClock(datetime(2026, 3, 1, tzinfo=UTC))
    assert MemorySystem(skus=[], credits={}, clock=clock).clock.now().month == 3
