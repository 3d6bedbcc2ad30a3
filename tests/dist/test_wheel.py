"""The wheel and the sdist as files, and the hook that puts them together."""

from __future__ import annotations

import importlib.util
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from wheel_environment import ROOT, build_wheel

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hook", ROOT / "scripts/build_wheel_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wheel_has_one_top_level_name(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"weighbridge"}
    assert {"weighbridge/py.typed", "weighbridge/billing/alembic/env.py"} <= set(names)
    assert not [name for name in names if "/lab/" in name or "/tests/" in name]


def test_an_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    sdist = build_wheel(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = build_wheel(source, tmp_path / "wheel")
    contents = [
        {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}
        for file in map(zipfile.ZipFile, (wheel, again))
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("from billing.core import money\n", "from weighbridge.billing.core import money\n"),
        ("from  workers import usage\n", "from  weighbridge.workers import usage\n"),
        (
            "if TYPE_CHECKING:\n    from billing.x import (\n        y,\n    )\n",
            "if TYPE_CHECKING:\n    from weighbridge.billing.x import (\n        y,\n    )\n",
        ),
        ("é = 1; from billing.a import b\n", "é = 1; from weighbridge.billing.a import b\n"),
        ("from billings import a\n", "from billings import a\n"),
        ("from .billing import a\n", "from .billing import a\n"),
        ('"""from billing.core import money"""\n', '"""from billing.core import money"""\n'),
    ],
)
def test_import_statements_are_rewritten_and_nothing_else(
    hook: ModuleType, source: str, wanted: str
):
    assert hook.relocated(source.encode()).decode() == wanted


@pytest.mark.parametrize(
    "source",
    [
        "import billing.core\n",
        "import os, workers\n",
        "from \\\n    billing.core import money\n",
        "name = 'billing.core'\n",
        "name = 'billing.core.money'\n",
        "name = 'billing.core.money.Money'\n",
        "name = 'workers.app:make_app'\n",
        "text = f'python -m billing.core {1}'\n",
    ],
)
def test_a_name_that_the_wheel_does_not_have_fails_the_build(hook: ModuleType, source: str):
    files = {
        "weighbridge/billing/core/__init__.py": b"",
        "weighbridge/billing/core/money.py": b"class Money: ...\n",
        "weighbridge/workers/app.py": b"def make_app(): ...\n",
    }
    broken = hook.relocated(source.encode())
    with pytest.raises(hook.BuildError, match=r"weighbridge/broken\.py:1"):
        hook.refuse_bare_names({**files, "weighbridge/broken.py": broken})


@pytest.mark.parametrize(
    "source",
    [
        "task = 'billing.sweep_holds'\n",
        "path = '/v1/billing/core'\n",
        "header = 'billing'\n",
        "def f():\n    '''As ``billing.core.money``.'''\n",
        "name = f'{__package__}.core'\n",
    ],
)
def test_task_names_paths_and_documentation_are_no_names_of_modules(hook: ModuleType, source: str):
    files = {"weighbridge/billing/core/money.py": b"", "weighbridge/fine.py": source.encode()}
    hook.refuse_bare_names(files)
