"""`lab`: JupyterLab in the folder of the notebooks, with the same ledger as the command line beside it."""

from __future__ import annotations

from pathlib import Path

import click

NOTEBOOKS = "notebooks"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("jupyter", nargs=-1, type=click.UNPROCESSED)
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Copy the notebooks to this folder.")
@click.option("--where", is_flag=True, help="Only say where the notebooks are.")
def lab(jupyter: tuple[str, ...], to: Path | None, where: bool) -> None:
    """Open the notebooks in JupyterLab: in a checkout where they lie, otherwise (and with --to) copied, by default to
    ./notebooks. A notebook that is there already is yours and stays as it is.

    The notebooks use the ledger of this folder ($QUANTLAB_LEDGER, or ./runs). JUPYTER: whatever else is written goes to
    Jupyter.

    \b
    quantlab lab
    quantlab lab --to ~/mine --no-browser --port 9000
    """
    from quantlab.errors import NoAccess

    place = notebooks(to)
    click.echo(f"notebooks: {place}", err=not where)
    if where:
        return
    import importlib.util
    import os
    import sys

    if importlib.util.find_spec("jupyterlab") is None:
        raise NoAccess(
            "JupyterLab is not installed beside quantlab.",
            place="quantlab lab",
            cure=f"pip install 'quantlab[lab]' (in a checkout: pip install -e '.[lab]'). The notebooks lie in {place}.",
        )
    words = [sys.executable, "-m", "jupyterlab", str(place), *jupyter]
    ledger = os.environ.get("QUANTLAB_LEDGER") or "runs"
    # Jupyter takes this process's place, so that Ctrl-C and the exit code are its own.
    os.execve(sys.executable, words, {**os.environ, "QUANTLAB_LEDGER": str(Path(ledger).expanduser().absolute())})


def notebooks(folder: Path | None) -> Path:
    """Where the notebooks are: in the checkout, or copied out of the package into `folder`.

    Raises:
        BadInput: the copy cannot be written.
    """
    import shutil

    from quantlab.catalog.files import PACKAGE, builtin
    from quantlab.errors import BadInput

    shipped = builtin() / NOTEBOOKS
    if folder is None and builtin() == PACKAGE.parent:
        return shipped
    target = (folder or Path(NOTEBOOKS)).absolute()
    try:
        for source in sorted(each for each in shipped.rglob("*") if each.suffix in (".ipynb", ".yaml")):
            copy = target / source.relative_to(shipped)
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
    except OSError as error:
        raise BadInput(
            f"the notebooks cannot be copied: {error.strerror}.", place=str(target), cure="Name another folder."
        ) from error
    return target
