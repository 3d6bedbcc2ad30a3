"""``weighbridge`` in a checkout, where the one name that a wheel installs does not exist.

A folder for PYTHONPATH: the examples of the documentation import what users import, and get the
modules that the wheel's are made of. The wheel itself is tested in ``tests/wheel``.
"""

from __future__ import annotations

import sys

import workers
import workers.errors
from billing import testing

# The import system returns what stands in sys.modules once this module was executed.
sys.modules["weighbridge"] = workers
sys.modules["weighbridge.errors"] = workers.errors
sys.modules["weighbridge.testing"] = testing
