"""Which URLs and addresses the guard lets through. No network."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.errors import ConfigurationError
from billing.core.url_guard import (
    MAX_URL_CHARACTERS,
    FetchPolicy,
    UrlRefused,
    check_addresses,
    check_url,
    may_connect,
)
from billing.settings import Settings
from workers.tasks.fetch_policy import policy_from

PUBLIC = FetchPolicy()
ANY_PORT = FetchPolicy(ports=None)


def check_literal(url: str) -> None:
    """Both checks, as for a host that is an address."""
    target = check_url(url, PUBLIC)
    check_addresses([str(target.literal)], PUBLIC)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2600::1%eth0",
        "fec0::1",
        "ff02::1",
        "100::1",
        "5f00::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str):
    assert not may_connect(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
    ],
)
def test_a_public_address_is_let_through(address: str):
    assert may_connect(ipaddress.ip_address(address))


def test_an_allowed_network_is_let_through_and_its_neighbour_is_not():
    networks = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/64"))

    assert may_connect(ipaddress.ip_address("10.1.2.3"), networks)
    assert may_connect(ipaddress.ip_address("fd00:1::5"), networks)
    assert not may_connect(ipaddress.ip_address("10.2.0.1"), networks)
    assert not may_connect(ipaddress.ip_address("fd00:2::5"), networks)


def test_a_carried_address_is_judged_by_what_it_carries_for_allowed_networks_too():
    networks = (ipaddress.ip_network("127.0.0.0/8"),)

    assert may_connect(ipaddress.ip_address("::ffff:127.0.0.1"), networks)
    assert not may_connect(ipaddress.ip_address("::ffff:10.0.0.1"), networks)


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_judged_the_same_in_each_ipv6_form(address: str):
    number = int(address)
    forms = [
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
    ]
    assert [may_connect(form) for form in forms] == [may_connect(address)] * 3


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "only http and https"),
        ("example.com", "only http and https"),
        ("//example.com/", "only http and https"),
        ("ftp://example.com/", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://example.com/", "only http and https"),
        (" http://example.com/", "only http and https"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://user@example.com/", "user name or password"),
        ("http://example.com\\@127.0.0.1/", "user name or password"),
        ("http://example.com:8080/", "port 8080"),
        ("http://example.com:22/", "port 22"),
        ("https://example.com:0/", "port 0"),
        ("http://example.com:99999/", "port 99999"),
        ("http://[::1/", "not a URL"),
        ("http://exa\nmple.com/", "not a URL"),
        ("http:///path", "neither a plain name"),
        ("http://2130706433/", "neither a plain name"),
        ("http://0x7f000001/", "neither a plain name"),
        ("http://0x7f.0.0.1/", "neither a plain name"),
        ("http://017700000001/", "neither a plain name"),
        ("http://127.1/", "neither a plain name"),
        ("http://127.0.0.1./", None),
        ("http://0177.0.0.1/", "not a URL"),
        ("http://127.0.0.256/", "not a URL"),
        ("http://%31%32%37.0.0.1/", "neither a plain name"),
        ("http://exam%70le.com/", "neither a plain name"),
        ("http://a..b/", "neither a plain name"),
        ("http://.example.com/", "neither a plain name"),
        ("http://-x.example.com/", "neither a plain name"),
        (f"http://{'a' * 64}.com/", "neither a plain name"),
        ("http://exam ple.com/", "neither a plain name"),
        (f"http://example.com/{'a' * MAX_URL_CHARACTERS}", "more than"),
    ],
)
def test_a_url_of_another_form_is_refused_with_the_reason(url: str, why: str | None):
    with pytest.raises(UrlRefused) as refused:
        check_literal(url)
    assert why is None or why in refused.value.reason


@pytest.mark.parametrize("host", ["\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"])
def test_full_width_digits_and_ideographic_dots_do_not_hide_an_address(host: str):
    with pytest.raises(UrlRefused):
        check_literal(f"http://{host}/")


@pytest.mark.parametrize(
    ("url", "host", "port", "rest"),
    [
        ("http://Example.COM", "example.com", 80, "http://example.com"),
        ("https://example.com/a?b=c#d", "example.com", 443, "https://example.com/a?b=c"),
        ("http://example.com:443/", "example.com", 443, "http://example.com:443/"),
        ("http://example.com./x", "example.com", 80, "http://example.com/x"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "http://xn--bcher-kva.example/"),
        ("http://a_b.example/", "a_b.example", 80, "http://a_b.example/"),
    ],
)
def test_a_plain_url_is_a_target(url: str, host: str, port: int, rest: str):
    target = check_url(url, PUBLIC)

    assert (target.host, target.port, target.literal) == (host, port, None)
    assert target.url.raw_host.decode() == host
    assert str(target.url).rstrip("/") == rest.rstrip("/")


@pytest.mark.parametrize(
    ("url", "literal"), [("http://1.1.1.1/", "1.1.1.1"), ("http://[2606:4700::1]/", "2606:4700::1")]
)
def test_an_address_as_host_is_a_literal(url: str, literal: str):
    assert check_url(url, PUBLIC).literal == ipaddress.ip_address(literal)


def test_any_port_is_allowed_by_a_policy_without_ports():
    assert check_url("http://example.com:8081/", ANY_PORT).port == 8081


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
def test_a_number_that_is_no_port_is_refused_even_so(port: int):
    with pytest.raises(UrlRefused):
        check_url(f"http://example.com:{port}/", ANY_PORT)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        ["127.0.0.1"],
        ["1.1.1.1", "10.0.0.1"],
        ["10.0.0.1", "1.1.1.1"],
        ["1.1.1.1", "::1"],
        ["1.1.1.1", "fe80::1%eth0"],
        ["1.1.1.1", "not an address"],
    ],
)
def test_one_bad_answer_refuses_the_name_and_is_not_named(answers: list[str]):
    with pytest.raises(UrlRefused) as refused:
        check_addresses(answers, PUBLIC)
    assert not any(answer in str(refused.value) for answer in answers)


def test_good_answers_keep_their_order_and_lose_repeats():
    answers = ["2606:4700::1", "1.1.1.1", "2606:4700::1"]

    assert check_addresses(answers, PUBLIC) == ("2606:4700::1", "1.1.1.1")


@given(st.text(max_size=60))
def test_no_text_at_all_gets_past_as_anything_but_a_target_or_a_refusal(text: str):
    for candidate in (text, f"http://{text}/", f"https://a.example:{text}"):
        try:
            target = check_url(candidate, PUBLIC)
        except UrlRefused:
            continue
        assert target.port in {80, 443}
        assert target.host


def test_the_policy_is_read_from_the_settings():
    settings = Settings(
        fetch_allow_networks="127.0.0.0/8, fd00::/8",
        fetch_ports="80, 8080",
        fetch_timeout_seconds=7,
        fetch_max_bytes=1000,
        proxy_url="http://user:secret@proxy.example:3128",
    )

    direct = policy_from(settings)
    assert [str(network) for network in direct.allow_networks] == ["127.0.0.0/8", "fd00::/8"]
    assert (direct.ports, direct.timeout_seconds, direct.max_bytes) == ({80, 8080}, 7.0, 1000)
    assert direct.proxy_url is None
    through = policy_from(settings, through_proxy=True)
    assert through.proxy_url == "http://user:secret@proxy.example:3128"
    assert "secret" not in repr(through)


def test_the_default_policy_is_public_addresses_on_the_webs_ports():
    policy = policy_from(Settings(fetch_allow_networks="", fetch_ports="80,443"))
    assert (policy.allow_networks, policy.ports) == ((), {80, 443})


def test_a_star_allows_every_port():
    assert policy_from(Settings(fetch_ports=" * ")).ports is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fetch_allow_networks", "10.0.0.1/8"),
        ("fetch_allow_networks", "localhost"),
        ("fetch_ports", ""),
        ("fetch_ports", "http"),
        ("fetch_ports", "80,0"),
        ("fetch_ports", "65536"),
        ("fetch_ports", "-1"),
        ("proxy_url", "socks5://proxy.example"),
        ("proxy_url", "user:secret@"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named_with_its_remedy(field: str, value: str):
    with pytest.raises(ConfigurationError) as wrong:
        policy_from(Settings(**{field: value}), through_proxy=True)
    assert wrong.value.setting == f"WEIGHBRIDGE_{field.upper()}"
    assert wrong.value.remedy
    assert "secret" not in str(wrong.value)
