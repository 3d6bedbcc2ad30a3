"""``python -m billing.cli``: the ``billing`` command where its script is not on the path."""

from billing.cli.main import main

main()
