"""The command line: words in, one record to the pipeline, a page of text out.

A command's module is imported when the command is called, so that `quantlab --help` and shell completion answer at
once. Every error of ours ends here: one line that names the place, one that names the cure, the class's exit code.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from quantlab import __version__
from quantlab.errors import Interrupted, QuantlabError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("quantlab.cli.run:run", "Quantize, score, time and judge: the main job."),
    "calibrate": ("quantlab.cli.run:calibrate", "Only quantize, export and verify."),
    "eval": ("quantlab.cli.run:evaluate", "Only canary, fidelity and accuracy."),
    "bench": ("quantlab.cli.run:bench", "Only throughput."),
    "plan": ("quantlab.cli.plan:plan", "Will it fit and who serves it, here or on a GPU of the catalog."),
    "recommend": ("quantlab.cli.recommend:recommend", "Which precision to ship on a GPU, how fast, how sure."),
    "repair": ("quantlab.cli.repair:repair", "Keep a recipe's most sensitive layers in more bits."),
    "study": ("quantlab.cli.study:study", "Does the calibration text matter? A small grid against its noise."),
    "ls": ("quantlab.cli.look:ls", "List models, recipes, suites, grids, policies, sets or runs."),
    "show": ("quantlab.cli.look:show", "Print one of them as it is."),
    "cp": ("quantlab.cli.look:cp", "Copy one of them here to change it."),
    "report": ("quantlab.cli.report:report", "Show or rewrite the report of a run in the ledger."),
    "lab": ("quantlab.cli.lab:lab", "Open the notebooks in JupyterLab."),
    "doctor": ("quantlab.cli.doctor:doctor", "What this machine has, what is missing, and the cure."),
    "engines": (
        "quantlab.cli.engines:engines",
        "Which engines work here; `engines setup` makes room for one.",
    ),
    "convert": ("quantlab.cli.convert:convert", "Write an int4 checkpoint in another program's layout."),
    "build": ("quantlab.cli.build:build", "Build the vision encoder as ONNX model or TensorRT plan, checked."),
    "completion": ("quantlab.cli.look:completion", "Print the line that switches on shell completion."),
}
"""name -> ("module:command", help)."""


class Lazy(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(error.message + (f" Did you mean {close[0]!r}?" if close else ""), ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quantlab")
def cli() -> None:
    """Which precision to ship for Llama 3.2 on this GPU: its cost in accuracy, its gain in speed and memory, and
    how sure we are.

    \b
    quantlab run fp8 int4_awq --model smollm2-135m     a real small model, on any machine, offline
    quantlab run fp8 --model 3b                        Llama 3.2 3B Instruct, on a machine with a GPU
    quantlab ls recipes                                the words one can use
    quantlab doctor                                    what this machine has
    """


def main() -> None:
    """Entry point: errors of ours become one message and their exit code, never a traceback."""
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _fail(Interrupted("stopped.", cure="The same command goes on where it was."))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except QuantlabError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(Interrupted("stopped.", cure="The same command goes on where it was."))
    except BrokenPipeError:
        # The reader closed the pipe (`quantlab ls | head`): that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(error: QuantlabError) -> None:
    if "--json" in sys.argv:
        import json

        kind = type(error).__name__
        plain = {"error": kind, "place": error.place, "problem": error.problem, "cure": error.cure}
        click.echo(json.dumps(plain))
    place = f"{error.place}: " if error.place else ""
    click.echo(click.style("error: ", fg="red", bold=True) + place + error.problem, err=True)
    if error.cure:
        click.echo(click.style("cure:  ", fg="green", bold=True) + error.cure, err=True)
    sys.exit(error.exit_code)
