"""Flower's configuration: ``--conf=$(python -m weighbridge.flowerconfig)`` of ``celery … flower``.

Run as a program it prints its own path. Read by Flower it refuses to start without a password.
"""

if __name__ == "__main__":
    print(__file__)  # noqa: T201 - a path for the shell
else:
    from workers.flowerconfig import *  # noqa: F403 - the settings are there, once
