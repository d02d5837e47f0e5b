"""Run a node: `python -m goblet_node --name NAME --cache-root DIR`.

Worker processes import this module anew, so it does nothing but define until it is
run.
"""

import sys


def main() -> None:
    """Run the command line."""
    # Here, not above: a worker process needs no command line.
    from goblet_node import cli

    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
