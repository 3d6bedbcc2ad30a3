"""Every exception that an app may catch, in one tree below ``WeighbridgeError``."""

from workers.errors import *  # noqa: F403 - the tree is defined there, once
