"""Reading pages and finding words in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.errors import InvalidValue
from workers.tasks.page import (
    MAX_CHARACTERS,
    MAX_LINKS,
    MAX_SNIPPETS,
    MAX_TAGS,
    check_query,
    decode,
    normalise_url,
    parse,
    search,
)

BASE = "http://a.example/docs/index.html"
HTML = "text/html; charset=utf-8"


def read(source: str | bytes, content_type: str = HTML, base: str = BASE):
    return parse(source.encode() if isinstance(source, str) else source, content_type, base)


def test_title_text_and_links_are_read():
    got = read(
        "<html><head><title> The \n Title </title></head>"
        "<body><h1>Head</h1><p>Some\n\n  <b>bold</b>\ttext.</p><a href='next.html'>Next</a></body>"
    )

    assert got.title == "The Title"
    assert got.text == "Head Some bold text. Next"
    assert got.links == ("http://a.example/docs/next.html",)
    assert not got.truncated


def test_scripts_styles_and_the_like_are_not_text():
    got = read(
        "<title>T</title><style>p {}</style><body>before<script>var x = '<p>no</p>';</script>"
        "<noscript>no</noscript><template><p>no</p></template><svg><title>no</title>no</svg>"
        "<iframe>no</iframe><!-- no -->after"
    )
    assert got.text == "before after"
    assert got.title == "T"


@pytest.mark.parametrize(
    ("source", "title", "text"),
    [
        ("", "", ""),
        ("just words", "", "just words"),
        ("<title>only", "only", ""),
        ("<p>unclosed <b>tags", "", "unclosed tags"),
        ("a &amp; b &lt;c&gt; &nbsp; d", "", "a & b <c> d"),
        ("nul\x00 byte", "", "nul byte"),
        ("<frameset><frame src='x'></frameset>", "", ""),
        ("<title>a<b>c</title>x", "a<b>c", "x"),
    ],
)
def test_odd_pages_are_read_too(source: str, title: str, text: str):
    got = read(source)
    assert (got.title, got.text) == (title, text)


def test_plain_text_has_no_tags():
    got = read("a <b>c</b>\n\nd <a href='x'>", "text/plain; charset=utf-8")
    assert (got.title, got.text, got.links) == ("", "a <b>c</b> d <a href='x'>", ())


@pytest.mark.parametrize(
    ("href", "link"),
    [
        ("page.html", "http://a.example/docs/page.html"),
        ("../up.html", "http://a.example/up.html"),
        ("/root", "http://a.example/root"),
        ("?q=1", "http://a.example/docs/index.html?q=1"),
        ("//b.example/x", "http://b.example/x"),
        ("HTTPS://B.Example:443/X", "https://b.example/X"),
        ("http://b.example:80", "http://b.example/"),
        ("http://b.example:8080/", "http://b.example:8080/"),
        ("page.html#part", "http://a.example/docs/page.html"),
        ("  page.html \n", "http://a.example/docs/page.html"),
        ("pa\nge.html", "http://a.example/docs/page.html"),
        ("a b.html", "http://a.example/docs/a%20b.html"),
        ("ü.html", "http://a.example/docs/%C3%BC.html"),
        ("%C3%BC.html", "http://a.example/docs/%C3%BC.html"),
        ("http://[2606:4700::1]/x", "http://[2606:4700::1]/x"),
    ],
)
def test_links_are_absolute_and_in_one_spelling(href: str, link: str):
    assert read(f'<a href="{href}">x</a>').links == (link,)


@pytest.mark.parametrize(
    "href",
    [
        "mailto:a@b.example",
        "javascript:alert(1)",
        "ftp://b.example/",
        "data:text/html,x",
        "http://user:secret@b.example/",
        "http://[broken/",
        "http://b.example:port/",
        "http://b.example:99999/",
    ],
)
def test_what_cannot_be_fetched_is_no_link(href: str):
    assert read(f'<a href="{href}">x</a>').links == ()


def test_a_link_is_given_once_and_in_the_pages_order():
    got = read("<a href=b>1</a><a href=a>2</a><a href=b#x>3</a><map><area href=c></map><a>no</a>")
    assert [link.rpartition("/")[2] for link in got.links] == ["b", "a", "c"]


def test_a_base_tag_says_what_links_are_relative_to():
    assert read("<base href='/other/'><a href=x>x</a>").links == ("http://a.example/other/x",)
    assert read("<base href='ftp://b/'><a href=x>x</a>").links == ("http://a.example/docs/x",)


def test_more_links_than_can_be_followed_are_dropped():
    got = read("".join(f"<a href={n}>x</a>" for n in range(MAX_LINKS + 10)))
    assert len(got.links) == MAX_LINKS


def test_a_page_that_is_too_long_is_read_up_to_the_limit_and_says_so():
    long = read("<p>" + "x" * MAX_CHARACTERS)
    assert long.truncated
    assert len(long.text) == MAX_CHARACTERS - len("<p>")
    many = read("<br>x" * MAX_TAGS + "<b>last")
    assert many.truncated
    assert "last" not in many.text
    assert not read("<br>x" * MAX_TAGS).truncated


def test_text_at_any_depth_is_read():
    assert read("<div>" * 5_000 + "deep").text == "deep"


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("naïve".encode(), "text/html; charset=utf-8", "naïve"),
        ("naïve".encode(), "text/html", "naïve"),
        ("naïve".encode("latin-1"), "text/html; charset=ISO-8859-1", "naïve"),
        ("“x”".encode("cp1252"), "text/html; charset=latin1", "“x”"),
        ("“x”".encode("cp1252"), "text/html; charset=us-ascii", "“x”"),
        ("привет".encode("koi8-r"), 'text/html; charset="koi8-r"', "привет"),
        ("日本".encode("shift_jis"), "text/html; charset=Shift_JIS", "日本"),
        ("x".encode("utf-16"), "text/html", "x"),
        (b"\xef\xbb\xbfx", "text/html; charset=latin1", "x"),
        (b"<meta charset=koi8-r>" + "да".encode("koi8-r"), "text/html", "<meta charset=koi8-r>да"),
        ("да".encode(), "text/html; charset=nonsense", "да"),
        ("да".encode(), "text/html; charset=unicode_escape", "да"),
        ("да".encode(), "text/html; charset=zlib", "да"),
        (b"+AGE-", "text/html; charset=utf-7", "+AGE-"),
        (b"bad \xff byte", "text/html; charset=utf-8", "bad \ufffd byte"),
    ],
)
def test_bytes_are_decoded_by_mark_header_or_meta_tag(body: bytes, content_type: str, text: str):
    assert decode(body, content_type) == text


@given(st.binary(max_size=400), st.text(max_size=40))
def test_no_bytes_make_the_reader_fail(body: bytes, content_type: str):
    for wrapped in (
        body,
        b"<title>" + body,
        b'<a href="' + body + b'">x',
        b"<meta charset=" + body,
    ):
        got = parse(wrapped, content_type, BASE)
        assert "\x00" not in got.text + got.title
        assert all(link.startswith(("http://", "https://")) for link in got.links)
        assert all("#" not in link and normalise_url(link) == link for link in got.links)


@given(st.text(max_size=80))
def test_normalising_twice_is_normalising_once(text: str):
    for candidate in (text, f"http://{text}", f"http://a.example/{text}?{text}"):
        once = normalise_url(candidate)
        assert once is None or normalise_url(once) == once


def test_every_occurrence_of_every_word_counts():
    found = search("Red fish, blue FISH. A redder fishmonger.", "fish RED")
    assert found.score == 5


def test_a_text_that_lacks_one_word_is_not_a_match():
    assert search("red fish", "red fish bicycle") == search("", "red")
    assert search("red fish", "bicycle").score == 0


def test_special_characters_are_looked_for_as_they_are():
    assert search("a.c abc (x|y) [z", "a.c (x|y) [z").score == 3


def test_a_word_given_twice_counts_once():
    assert search("red", "red RED").score == 1


def test_snippets_show_how_the_text_reads_there_and_do_not_overlap():
    text = "start " + "red fish " + "x" * 300 + " a red herring " + "y" * 300 + " red, the end"
    found = search(text, "red")

    assert found.score == len(found.snippets) == MAX_SNIPPETS
    assert found.snippets[0].startswith("start red fish")
    assert "a red herring" in found.snippets[1]
    assert found.snippets[2].endswith("red, the end")
    assert len(search("red " * 500, "red").snippets) == MAX_SNIPPETS


@given(st.text(max_size=300), st.text(min_size=1, max_size=20).filter(lambda q: q.split()))
def test_a_score_and_its_snippets_agree(text: str, query: str):
    found = search(text, query)
    assert (found.score > 0) == bool(found.snippets)
    assert all(snippet in text for snippet in found.snippets)


@pytest.mark.parametrize("query", ["", "   \n", "x" * 501, None, 7])
def test_a_query_that_cannot_be_searched_for_is_refused(query: object):
    with pytest.raises(InvalidValue, match="query"):
        check_query(query)
