"""The documentation says what is so: as far as a program can find out."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from docs_pages import (
    ROOT,
    Page,
    all_options,
    broken_links,
    commands,
    fault_of_command,
    missing_modules,
    missing_paths,
    pages,
    unknown_settings,
)

from billing.core.usage_event import DeadReason
from workers.beat_schedule import BEAT_SCHEDULE

PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


def page_of(text: str) -> Page:
    return Page(ROOT / "docs" / "made-up.md", text)


def named(name: str) -> Page:
    return next(page for page in PAGES if page.name == name)


def sources() -> list[str]:
    """The text of every module of the product."""
    tops = ("billing", "workers")
    return [path.read_text("utf-8") for top in tops for path in ROOT.glob(f"{top}/**/*.py")]


def configuration_script() -> ModuleType:
    path = ROOT / "scripts" / "write_configuration.py"
    spec = importlib.util.spec_from_file_location("write_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the generated page ------------------------------------------------------------------------


def test_the_configuration_reference_is_that_of_the_settings():
    written = named("docs/configuration.md").text
    assert written == configuration_script().page(), "stale: run make docs"


def test_a_stale_configuration_reference_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = configuration_script()
    monkeypatch.setattr("sys.argv", ["write_configuration", "--check"])
    monkeypatch.setattr(script, "TARGET", tmp_path / "configuration.md")
    assert script.main() == 1
    (tmp_path / "configuration.md").write_text(script.page())
    assert script.main() == 0
    (tmp_path / "configuration.md").write_text(script.page().replace("2100", "2101"))
    assert script.main() == 1


def test_every_setting_is_described():
    rows = [line for line in configuration_script().page().splitlines() if "| `" in line]
    assert len(rows) > 30
    assert [row for row in rows if row.endswith("|  |")] == []


# -- links, commands, settings, paths ----------------------------------------------------------


@every_page
def test_every_relative_link_leads_somewhere(page: Page):
    assert broken_links(page) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](glossary.md)", []),
        ("[a](https://example.com/nowhere)", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](architecture.md#the-fence)", []),
        ("[a](architecture.md#the-gate)", ["architecture.md#the-gate"]),
        ("# Here\n[a](#here) [b](#there)", ["#there"]),
        ("![a](one-task.svg)", []),
        ("```\n[a](nowhere.md)\n```", []),
    ],
)
def test_a_broken_link_is_found(text: str, broken: list[str]):
    assert broken_links(page_of(text)) == broken


@every_page
def test_every_billing_command_exists(page: Page):
    assert [fault for command in commands(page) if (fault := fault_of_command(command))] == []


@pytest.mark.parametrize(
    ("text", "faulty"),
    [
        ("`billing credits balance acme`", False),
        ("`billing credits\nbalance`", False),
        ("`billing credits steal`", True),
        ("`billing credits balance --steal`", True),
        ("`billing reciept`", True),
        ("```\n$ billing dead replay 1\nReplay\n```", False),
        ("```\nbilling dead revive 1  # a comment\n```", True),
        ("`billing = {customer}` and `billing.sweep_holds`", False),
    ],
)
def test_a_command_that_is_not_there_is_found(text: str, faulty: bool):
    found = [fault_of_command(command) for command in commands(page_of(text))]
    assert any(found) == faulty


def test_every_command_has_its_place_in_the_reference():
    top = {command.split()[1] for command in commands(named("docs/cli.md"))}
    assert top == {
        *("migrate", "doctor", "customers", "skus", "credits", "usage", "receipt", "explain"),
        *("dead", "holds", "consumer", "relay", "local", "up"),
        *("report", "reconcile", "stripe", "stripe-sandbox", "api", "metrics"),
        *("archive", "restore", "verify", "seals", "proof"),
    }


@pytest.mark.parametrize(
    "page", [page for page in PAGES if not page.name.startswith("lab/")], ids=lambda page: page.name
)
def test_every_option_between_backticks_exists(page: Page):
    """But for the programs of ``lab/``, which have options of their own."""
    options = [re.split(r"[ =]", span)[0] for span in page.spans if span.startswith("--")]
    assert set(options) <= all_options()


@every_page
def test_every_setting_named_exists(page: Page):
    assert unknown_settings(page) == []


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("WEIGHBRIDGE_SPOOL_DIR, DATABASE_URL", []),
        ("WEIGHBRIDGE_POOL_DIR", ["WEIGHBRIDGE_POOL_DIR"]),
        ("CACHE_URL", ["CACHE_URL"]),
        # The proxy has only the prefixed name.
        ("PROXY_URL", ["PROXY_URL"]),
    ],
)
def test_a_setting_that_is_not_there_is_found(text: str, unknown: list[str]):
    assert unknown_settings(page_of(text)) == unknown


@every_page
def test_every_file_named_exists(page: Page):
    assert missing_paths(page) == []


def test_a_file_that_is_not_there_is_found():
    assert missing_paths(page_of("`billing/core/event_ids.py` `billing/*/README.md`")) == []
    assert missing_paths(page_of("`billing/core/id.py`")) == ["billing/core/id.py"]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "decisions/" not in page.name], ids=lambda page: page.name
)
def test_every_module_named_exists(page: Page):
    """But for the decisions, which keep the names of their day."""
    jobs = {job["task"] for job in BEAT_SCHEDULE.values()}
    assert [name for name in missing_modules(page) if name not in jobs] == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`billing.core.credits` and `workers.task`", []),
        ("`billing.metering.meter.Meter`", []),
        ("`billing.metering.meter.Metre`", ["billing.metering.meter.Metre"]),
        ("`billing.gate`", ["billing.gate"]),
        ("`billing.reconciliation` and `billing = {customer}`", []),
    ],
)
def test_a_module_that_is_not_there_is_found(text: str, missing: list[str]):
    assert missing_modules(page_of(text)) == missing


GLOSSARY = named("docs/glossary.md")
ENTRIES = [entry for entry in GLOSSARY.text.split("\n\n") if entry.startswith("**")]


def test_every_word_of_the_glossary_has_its_place_in_the_code():
    """In brackets at its end: a module, or a public class by its name alone."""
    classes = set(re.findall(r"^class (\w+)", "\n".join(sources()), re.MULTILINE))
    homes = [re.search(r"\s\(`([\w.]+)`\)$", entry) for entry in ENTRIES]
    assert [entry for entry, home in zip(ENTRIES, homes, strict=True) if home is None] == []
    named = [home[1] for home in homes if home]
    assert [name for name in named if "." not in name and name not in classes] == []
    assert len(named) > 60


def test_every_word_of_the_glossary_stands_there_once():
    words = [re.match(r"\*\*(.+?)\*\*", entry) for entry in ENTRIES]
    found = [word for match in words if match for word in match[1].split(", ")]
    assert sorted(found) == sorted(set(found))


@every_page
def test_every_make_target_exists(page: Page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = {span.split()[1] for span in page.spans if re.match(r"make [a-z]", span)}
    assert wanted <= targets


def test_every_log_event_to_watch_is_one_that_the_code_writes():
    page = named("docs/operating.md")
    table = page.text.partition("and in the logs:")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    events = [event for row in rows for event in re.findall(r"`([^`]+)`", row)]
    code = "".join(sources())
    assert len(events) > 8
    assert [event for event in events if f'"{event}' not in code] == []


def test_every_dead_reason_named_is_one():
    page = named("docs/operating.md")
    table = page.text.partition("| reason | what to do |")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    reasons = [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)]
    assert len(reasons) > 8
    assert set(reasons) <= {reason.value for reason in DeadReason}


def test_what_the_code_says_of_the_docs_is_there():
    found: list[tuple[str, str]] = []
    for top in ("billing", "workers"):
        for path in ROOT.glob(f"{top}/**/*.py"):
            text = re.sub(r"\s+", " ", path.read_text("utf-8"))
            found += re.findall(r"(docs/[\w/-]+\.md)`*(?:, \"([^\"]+)\")?", text)
    assert ("docs/architecture.md", "The fence") in found
    for name, section in found:
        assert not section or f"## {section}\n" in named(name).text, (name, section)
        assert (ROOT / name).is_file()


# -- code in the docs --------------------------------------------------------------------------


@every_page
def test_python_in_the_docs_is_python(page: Page):
    for number, block in enumerate(page.blocks("python")):
        compile(block, f"{page.name}, block {number}", "exec")


# -- decisions, the picture, and what no page may say -------------------------------------------


def test_decisions_are_numbered_without_gaps():
    assert [path.name[:4] for path in DECISIONS] == [
        f"{number:04d}" for number in range(1, len(DECISIONS) + 1)
    ]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_why_what_follows_and_what_was_rejected(path: Path):
    text = path.read_text("utf-8")
    assert text.startswith(f"# {path.name[:4]}. ")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections == ["Context", "Decision", "Consequences", "Rejected"]


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[\[=><;]", line)[0] for line in project["dependencies"]]
    text = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text()
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)] == []


def test_the_picture_is_well_formed_and_can_be_read_aloud():
    root = ET.parse(ROOT / "docs" / "one-task.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title")
    assert root.findtext(f"{space}desc")
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    texts = [(float(t.attrib["x"]), float(t.attrib["y"])) for t in root.iter(f"{space}text")]
    assert len(texts) > 40
    assert all(0 < x < width and 0 < y < height for x, y in texts)


@every_page
def test_no_page_names_a_machine(page: Page):
    assert re.findall(r"(?:/root|/work|/home|/tmp)/\S*|\bpypi\b\S*", page.text) == []


def test_the_licence_is_the_one_that_the_package_names():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = { text = "Apache-2.0" }' in (ROOT / "pyproject.toml").read_text()
