"""``grmp-score download MODEL``"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grmp_score.cli.completion import complete_model

if TYPE_CHECKING:
    from grmp_score.weights.folder import Weights


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--filename", default=None, metavar="FILE.pt", help="Official checkpoint in that repository.")
@click.option("--revision", default=None, help="Branch, tag or commit of the Hub repository.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write a weights folder that needs nothing else, to carry to another machine.",
)
def command(model: str, filename: str | None, revision: str | None, output: Path | None) -> None:
    """Fetch a model of the Hub for use without a network.

    MODEL is a Hub repository (owner/name).  Its files, and those of the backbone it stands on, go to the cache of
    the Hub client (HF_HOME says where), and are verified by their checksums and by reading them.  What is there
    already is not fetched again.  The place is printed; with --output, that of the new folder.

    \b
    Examples:
      grmp-score download owner/name
      grmp-score download owner/name --revision v1.0 -o name
      grmp-score download zzhowe/GRMP-IQA --filename clive_50_prompt_lda_5.0.pt

    Exit status: 0 the model is complete, 2 it cannot be had (the reason is named) or wrong usage.
    """
    from grmp_score import weights

    if filename is not None:
        loaded, files = _checkpoint(model, filename, revision)
    else:
        loaded = weights.load(model, revision=revision)
        loaded.build()  # what cannot be used is better known now than without a network
        files = _files(model, revision, loaded)
    place = files[0].parent
    size = sum(file.stat().st_size for file in files)
    if Path(model).exists() or (weights.BUNDLED / model).is_dir():
        click.echo("nothing to fetch: this model is on this machine already", err=True)
    click.echo(
        f"{len(files)} files, {size / 1e6:.1f} MB; use it with: {_usage(model, filename, revision)}", err=True
    )
    if output is not None:
        # Base weights from another repository become a file of the folder.
        place = dataclasses.replace(loaded, backbone=loaded.backbone_state()).save(output)
        click.echo(f"wrote {place}; use it with: grmp-score PATHS --model {place}", err=True)
    click.echo(str(place))


def _checkpoint(model: str, filename: str, revision: str | None) -> tuple[Weights, list[Path]]:
    from grmp_score.weights import hub, official

    folder = Path(model)
    file = folder / filename if folder.is_dir() else hub.fetch_file(model, filename, revision=revision)
    return official.load_official(file, name=f"{model}/{filename}"), [file]


def _files(model: str, revision: str | None, loaded: Weights) -> list[Path]:
    """The files of a model that `weights.load` has just read: no network is needed to find them."""
    from grmp_score import weights
    from grmp_score.errors import HubError
    from grmp_score.weights import hub
    from grmp_score.weights.tensors import TensorFile

    folder = next((p for p in (Path(model), weights.BUNDLED / model) if p.is_dir()), None)
    names = [weights.CONFIG, weights.ADAPTER, weights.CARD]
    if folder is not None:
        files = [folder / name for name in names if (folder / name).is_file()]
    else:
        files = [hub.fetch_file(model, name, revision=revision, local_files_only=True) for name in names[:2]]
        with contextlib.suppress(HubError):  # a model without a card
            files.append(hub.fetch_file(model, weights.CARD, revision=revision, local_files_only=True))
    return [*files, loaded.backbone.path] if isinstance(loaded.backbone, TensorFile) else files


def _usage(model: str, filename: str | None, revision: str | None) -> str:
    extra = (f" --filename {filename}" if filename else "") + (f" --revision {revision}" if revision else "")
    return f"grmp-score PATHS --model {model}{extra}"
