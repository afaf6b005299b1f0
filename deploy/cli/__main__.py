"""``python -m medfed.deploy.cli``: the same as the ``medfed`` command."""

from medfed.deploy.cli import main

main()
