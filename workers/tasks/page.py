"""Reading a page: its title, its text, its links; and finding words in the text. Pure."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from selectolax.lexbor import LexborHTMLParser

from billing.core.errors import InvalidValue

MAX_CHARACTERS: Final = 2_000_000
MAX_TAGS: Final = 100_000
"""The most that is read of a page; the rest is cut off. HTML parsers take time in the square of how
deeply a page nests and of how many attributes a tag has: 40,000 of either take Lexbor 2 s, 100,000
deep ones 27 s, and it cannot be interrupted. Large generated documentation has 65,000 tags."""

MAX_LINKS: Final = 5_000
MAX_QUERY_CHARACTERS: Final = 500
MAX_SNIPPETS: Final = 3
_SNIPPET_MARGIN: Final = 60

_DROPPED: Final = ["script", "style", "noscript", "template", "iframe", "svg", "title"]
_META_CHARSET: Final = re.compile(rb"(?i)<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})")
_HEADER_CHARSET: Final = re.compile(r"(?i)charset\s*=\s*[\"']?\s*([\w:.-]{1,40})")
_PRESCAN_BYTES: Final = 1_024
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# The web says latin-1 and ASCII where it means windows-1252 (WHATWG Encoding Standard, 4.2).
_READ_AS: Final = {"iso8859-1": "cp1252", "ascii": "cp1252"}
_CODECS: Final = re.compile(
    r"utf-8|utf-16(-[lb]e)?|cp125\d|cp866|cp874|cp949|iso8859-\d+|koi8-[ru]|gb2312|gbk|gb18030"
    r"|big5|big5hkscs|euc_(jp|kr)|shift_jis|iso2022_jp|mac-roman|tis-620",
    re.ASCII,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_URL_SAFE: Final = "%/:=&?~+!$,;'@()*[]|"


@dataclass(frozen=True, slots=True)
class ParsedPage:
    """The title, text and links of a page.

    ``text`` has its whitespace folded and a space where tags were; ``links`` are absolute,
    normalised, without fragment, each once, in the page's order. ``truncated``: it was too long to
    be read whole.
    """

    title: str
    text: str
    links: tuple[str, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The occurrences of a query's words in a text, and the text around them.

    ``score`` is the number of occurrences of all words; 0 unless each of them occurs.
    """

    score: int
    snippets: tuple[str, ...] = ()


def parse(body: bytes, content_type: str, base_url: str) -> ParsedPage:
    """Read a page. Whatever the bytes are, the answer is a ``ParsedPage``.

    Args:
        body: As fetched, decompressed.
        content_type: The whole header; ``text/plain`` has no tags, everything else is HTML.
        base_url: What the links in it are relative to, unless it says otherwise itself.
    """
    source = decode(body, content_type)
    kept = source[:MAX_CHARACTERS]
    if content_type.partition(";")[0].strip().lower() == "text/plain":
        return ParsedPage("", _folded(kept), (), len(kept) < len(source))
    kept = _first_tags(kept)
    tree = LexborHTMLParser(kept)
    title = tree.css_first("title")
    base = tree.css_first("base[href]")
    links = _links(tree, _joined(base_url, base.attributes.get("href") if base else "") or base_url)
    title_text = _folded(title.text()) if title else ""
    tree.strip_tags(_DROPPED)
    text = _folded(tree.body.text(separator=" ")) if tree.body else ""
    return ParsedPage(title_text, text, links, len(kept) < len(source))


def decode(body: bytes, content_type: str) -> str:
    """The text of a body: by its byte order mark, else the header, else its meta tag, else UTF-8.

    Bytes that are wrong in that charset become U+FFFD; an unknown charset counts as not given.
    """
    for bom, codec in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(codec, errors="replace")
    header = _HEADER_CHARSET.search(content_type)
    meta = _META_CHARSET.search(body[:_PRESCAN_BYTES])
    named = (header[1] if header else None, meta[1].decode("ascii", "replace") if meta else None)
    codec = next((known for name in named if name and (known := _codec(name))), "utf-8")
    return body.decode(codec, errors="replace")


def normalise_url(url: str) -> str | None:
    """The one spelling of an http or https URL; None for anything else.

    Scheme and host in lower case, no default port, no fragment, at least ``/`` as path, and what is
    not plain ASCII percent-encoded. The query stays as it is: its order may matter.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc:
        return None
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        netloc = f"{netloc}:{port}"
    path = quote(parts.path or "/", safe=_URL_SAFE)
    return urlunsplit((parts.scheme, netloc, path, quote(parts.query, safe=_URL_SAFE), ""))


def check_query(query: object) -> str:
    """``query`` if something can be searched for with it.

    Raises:
        InvalidValue: It has no word or more than ``MAX_QUERY_CHARACTERS``.
    """
    if not isinstance(query, str) or not query.split() or len(query) > MAX_QUERY_CHARACTERS:
        raise InvalidValue(
            "query", query, f"give one word or more, at most {MAX_QUERY_CHARACTERS} characters"
        )
    return query


def search(text: str, query: str) -> Found:
    """Find every word of ``query`` in ``text``, upper or lower case, also inside longer words.

    Raises:
        InvalidValue: As ``check_query``.
    """
    words = dict.fromkeys(word.lower() for word in check_query(query).split())
    hits: list[int] = []
    for word in words:
        found = [hit.start() for hit in re.finditer(re.escape(word), text, re.IGNORECASE)]
        if not found:
            return Found(0)
        hits += found
    return Found(len(hits), _snippets(text, sorted(hits)))


def _snippets(text: str, hits: list[int]) -> tuple[str, ...]:
    snippets: list[str] = []
    read_to = -1
    for hit in hits:
        if hit < read_to:
            continue
        start, read_to = max(0, hit - _SNIPPET_MARGIN), hit + _SNIPPET_MARGIN
        snippets.append(text[start:read_to].strip())
        if len(snippets) == MAX_SNIPPETS:
            break
    return tuple(snippets)


def _links(tree: LexborHTMLParser, base: str) -> tuple[str, ...]:
    links: dict[str, None] = {}
    for node in tree.css("a[href], area[href]"):
        link = _joined(base, node.attributes.get("href"))
        if link is not None:
            links[link] = None
            if len(links) == MAX_LINKS:
                break
    return tuple(links)


def _joined(base: str, href: str | None) -> str | None:
    try:
        # A browser drops tabs and line ends inside an address (WHATWG URL Standard, 4.4).
        return normalise_url(urljoin(base, re.sub(r"[\t\n\r]", "", href or "").strip()))
    except ValueError:
        return None


def _first_tags(source: str) -> str:
    if source.count("<") <= MAX_TAGS:
        return source
    for number, tag in enumerate(re.finditer("<", source)):
        if number == MAX_TAGS:
            return source[: tag.start()]
    return source


def _codec(name: str) -> str | None:
    try:
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    # Python also knows codecs that no page is written in (idna, unicode_escape, utf-7, zlib).
    codec = _READ_AS.get(codec, codec)
    return codec if _CODECS.fullmatch(codec) else None


def _folded(text: str) -> str:
    return " ".join(text.replace("\x00", " ").split())
