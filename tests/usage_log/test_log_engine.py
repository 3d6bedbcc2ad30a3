"""URLs of PostgreSQL as operators write them."""

from __future__ import annotations

import pytest

from billing.core.errors import InvalidValue
from billing.postgres.engines import owner_engine, sqlalchemy_url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_is_taken(scheme: str) -> None:
    assert sqlalchemy_url(f"{scheme}://a:b@c:1/d?e=f") == "postgresql+psycopg://a:b@c:1/d?e=f"


@pytest.mark.parametrize("url", ["mysql://root:secret@h/d", "secret@h/d", "", "postgresql"])
def test_another_server_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        sqlalchemy_url(url)
    assert "secret" not in str(refused.value)


def test_an_engine_connects_to_nothing_before_it_is_used() -> None:
    owner_engine("postgresql://nobody@127.0.0.1:1/nothing").dispose()
