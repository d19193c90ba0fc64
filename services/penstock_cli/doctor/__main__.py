"""``python -m penstock_cli.doctor``: the doctor alone, which needs none of the processes' packages."""

import typer

from penstock_cli.commands.doctor import EPILOG, doctor


def main() -> None:
    """Run it."""
    app = typer.Typer(name="penstock-doctor", pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(doctor)
    app()


if __name__ == "__main__":
    main()
