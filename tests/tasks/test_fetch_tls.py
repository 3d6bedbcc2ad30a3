"""TLS while the address is pinned: the name is sent and the certificate is checked for the name."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_site import Site, open_policy, page, serve

from workers.tasks.errors import UnreachableError
from workers.tasks.fetch import Fetcher

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command"),
]


SecureSite = tuple[Site, list[str | None]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=named.example -addext subjectAltName=DNS:named.example "
        "-keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture
def secure_site(certificate: Path) -> Iterator[SecureSite]:
    asked_for: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    with serve({"/": page("Secret", text="safe")}, tls=context) as site:
        yield site, asked_for


def fetcher(trusted: Path | None = None) -> Fetcher:
    context = ssl.create_default_context(cafile=trusted) if trusted else None
    return Fetcher(open_policy(), resolve=lambda *_: ["127.0.0.1"], ssl_context=context)


def test_the_server_is_asked_for_the_name_although_the_address_is_connected_to(
    secure_site: SecureSite, certificate: Path
):
    site, asked_for = secure_site

    got = fetcher(certificate / "cert.pem").fetch(site.url("/", host="named.example"))

    assert b"safe" in got.body
    assert asked_for == ["named.example"]
    assert site.headers[0]["host"] == f"named.example:{site.port}"


def test_a_certificate_for_another_name_is_refused(secure_site: SecureSite, certificate: Path):
    site, asked_for = secure_site
    with pytest.raises(UnreachableError, match="certificate is not valid"):
        fetcher(certificate / "cert.pem").fetch(site.url("/", host="other.example"))
    assert asked_for == ["other.example"]
    assert site.paths == []


def test_a_certificate_for_a_name_does_not_do_for_its_address(
    secure_site: SecureSite, certificate: Path
):
    site, _ = secure_site
    with pytest.raises(UnreachableError, match="certificate is not valid"):
        fetcher(certificate / "cert.pem").fetch(site.url())


def test_a_certificate_nobody_vouches_for_is_refused(secure_site: SecureSite):
    site, _ = secure_site
    with pytest.raises(UnreachableError, match="certificate is not valid"):
        fetcher().fetch(site.url("/", host="named.example"))
    assert site.paths == []
