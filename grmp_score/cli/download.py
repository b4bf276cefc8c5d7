"""``grmp-score download MODEL``"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grmp_score.cli.completion import complete_model
from grmp_score.cli.overwriting import check_folder

if TYPE_CHECKING:
    from grmp_score.weights.folder import Weights


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--filename", metavar="FILE.pt", help="Official checkpoint in that repository.")
@click.option("--revision", help="Branch, tag or commit of the Hub repository.")
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

    if output is not None:
        check_folder(output)
    loaded = weights.load(model, filename=filename, revision=revision)
    if filename is None:
        loaded.build()  # what cannot be used is better known now than without a network
    folder = next((p for p in (Path(model), weights.BUNDLED / model) if p.is_dir()), None)
    files = _files(model, filename, revision, loaded, folder)
    size = sum(file.stat().st_size for file in files)
    if folder is not None:
        click.echo("nothing to fetch: this model is on this machine already", err=True)
    usage = f"grmp-score PATHS --model {model}"
    usage += f" --filename {filename}" if filename else ""
    usage += f" --revision {revision}" if revision else ""
    click.echo(f"{len(files)} files, {size / 1e6:.1f} MB; use it with: {usage}", err=True)
    place = files[0].parent
    if output is not None:
        # Base weights from another repository become a file of the folder.
        place = dataclasses.replace(loaded, backbone=loaded.backbone_state()).save(output)
        click.echo(f"wrote {place}; use it with: grmp-score PATHS --model {place}", err=True)
    click.echo(str(place))


def _files(
    model: str, filename: str | None, revision: str | None, loaded: Weights, folder: Path | None
) -> list[Path]:
    """The files of a model that `weights.load` has just read: no network is needed to find them."""
    from grmp_score import weights
    from grmp_score.weights import hub
    from grmp_score.weights.tensors import TensorFile

    names = [filename] if filename else [weights.CONFIG, weights.ADAPTER]
    if not filename and loaded.card:
        names.append(weights.CARD)
    if folder is not None:
        files = [folder / name for name in names]
    else:
        files = [hub.fetch_file(model, name, revision=revision, local_files_only=True) for name in names]
    return [*files, loaded.backbone.path] if isinstance(loaded.backbone, TensorFile) else files
