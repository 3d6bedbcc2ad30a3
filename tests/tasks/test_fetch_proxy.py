"""Fetching through a forward proxy: what is still checked here, and what a request is."""

from __future__ import annotations

import base64

import pytest
from local_site import Reply, closed_port, open_policy, page, serve, to

from billing.core.url_guard import FetchPolicy
from workers.tasks.errors import BadStatusError, RefusedError, UnreachableError
from workers.tasks.fetch import Fetcher

PUBLIC_NAME = "http://name.example/"


class Requests:
    """Counts what a proxy would charge for."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


def through(port: int, *, user: str = "", resolves_to: str = "1.1.1.1") -> Fetcher:
    policy = FetchPolicy(proxy_url=f"http://{user}127.0.0.1:{port}")
    return Fetcher(policy, resolve=lambda *_: [resolves_to])


def test_the_proxy_gets_the_whole_url_and_its_answer_is_the_page():
    requests = Requests()
    with serve({PUBLIC_NAME: page("A", text="through")}) as proxy:
        got = through(proxy.port).fetch(PUBLIC_NAME, requests)

    assert b"through" in got.body
    assert got.final_url == PUBLIC_NAME
    assert proxy.paths == [PUBLIC_NAME]
    assert proxy.headers[0]["host"] == "name.example"
    assert requests.count == 1


def test_the_proxy_gets_its_own_credentials():
    with serve({PUBLIC_NAME: page("A")}) as proxy:
        through(proxy.port, user="me:secret@").fetch(PUBLIC_NAME)
    expected = base64.b64encode(b"me:secret").decode()
    assert proxy.headers[0]["proxy-authorization"] == f"Basic {expected}"


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://169.254.169.254/", "http://[::1]/"])
def test_an_address_inside_is_refused_before_the_proxy_hears_of_it(url: str):
    requests = Requests()
    with serve({url: page("inside")}) as proxy:
        with pytest.raises(RefusedError):
            through(proxy.port).fetch(url, requests)
        assert proxy.paths == []
    assert requests.count == 0


def test_a_name_that_leads_inside_is_refused_before_the_proxy_hears_of_it():
    with serve({PUBLIC_NAME: page("inside")}) as proxy:
        with pytest.raises(RefusedError):
            through(proxy.port, resolves_to="127.0.0.1").fetch(PUBLIC_NAME)
        assert proxy.paths == []


def test_a_redirect_through_the_proxy_is_checked_and_is_a_request_of_its_own():
    requests = Requests()
    routes = {PUBLIC_NAME: to("/b"), f"{PUBLIC_NAME}b": to("http://10.0.0.1/")}
    with serve(routes) as proxy:
        with pytest.raises(RefusedError):
            through(proxy.port).fetch(PUBLIC_NAME, requests)
        assert proxy.paths == [PUBLIC_NAME, f"{PUBLIC_NAME}b"]
    assert requests.count == 2


def test_a_request_that_failed_behind_the_proxy_is_one_that_was_made():
    requests = Requests()
    with serve({PUBLIC_NAME: Reply(b"", 502)}) as proxy, pytest.raises(BadStatusError):
        through(proxy.port).fetch(PUBLIC_NAME, requests)
    assert requests.count == 1


def test_a_proxy_that_is_not_there_was_not_used():
    requests = Requests()
    with pytest.raises(UnreachableError):
        through(closed_port()).fetch(PUBLIC_NAME, requests)
    assert requests.count == 0


def test_a_proxy_that_makes_no_tunnel_leaves_https_unreachable():
    with serve({}) as proxy, pytest.raises(UnreachableError, match="proxy"):
        through(proxy.port).fetch("https://name.example/")


def test_without_a_proxy_a_request_is_counted_when_the_server_was_reached():
    requests = Requests()
    with serve({"/": to("/b"), "/b": page("B")}) as site:
        Fetcher(open_policy()).fetch(site.url(), requests)
    assert requests.count == 2
    with pytest.raises(UnreachableError):
        Fetcher(open_policy()).fetch(f"http://127.0.0.1:{closed_port()}/", requests)
    assert requests.count == 2
