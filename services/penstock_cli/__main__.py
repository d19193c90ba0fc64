"""Entry point: names the commands."""

from typing import Annotated

import typer

from penstock_cli.commands import (
    batch,
    bench,
    chat,
    cost,
    demo,
    doctor,
    embed,
    explain,
    fleet,
    generate,
    simulate,
    up,
)
from penstock_core.version import VERSION

_HELP = "Serve large language models over gRPC, and run offline batches over them."


def main() -> None:
    """Run the command line."""
    build_app()()


def build_app() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        name="penstock", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False
    )
    app.callback()(_options)
    app.command(epilog=up.EPILOG)(up.up)
    app.command(epilog=demo.EPILOG)(demo.demo)
    app.command(epilog=generate.EPILOG)(generate.generate)
    app.command(epilog=chat.EPILOG)(chat.chat)
    app.command(epilog=embed.EPILOG)(embed.embed)
    app.add_typer(batch.app, name="batch")
    app.add_typer(bench.app, name="bench")
    app.command(epilog=fleet.EPILOG)(fleet.fleet)
    app.command(epilog=cost.EPILOG)(cost.cost)
    app.command(epilog=explain.EPILOG)(explain.explain)
    app.command(epilog=doctor.EPILOG)(doctor.doctor)
    app.command(epilog=simulate.EPILOG)(simulate.simulate)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {VERSION}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Options before the command."""


if __name__ == "__main__":
    main()
