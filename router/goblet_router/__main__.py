"""`python -m goblet_router`: the command `goblet`."""


def main() -> None:
    """Run the command line. Worker processes import this module again, so nothing runs before."""
    from goblet_router.cli import app

    app(prog_name="goblet")


if __name__ == "__main__":
    main()
