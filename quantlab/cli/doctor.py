"""`doctor`: what this machine has, whether it fits together, and what to do about what does not."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Show Python, packages, GPUs, engines, hub access, disk, memory and threads, each with its cure if it lacks."""
    from quantlab import doctor as room

    findings = room.doctor()
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(findings, order="deterministic"))
        return
    colours = {"ok": "green", "warn": "yellow", "missing": "red"}
    width = max(len(each.name) for each in findings)
    for each in findings:
        click.echo(click.style(f"{each.state:<8}", fg=colours[each.state]) + f"{each.name:<{width}}  {each.found}")
        if each.cure:
            click.echo(" " * (8 + width) + f"  -> {each.cure}")
