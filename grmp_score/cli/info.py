"""``grmp-score info [MODEL]``"""

from __future__ import annotations

import json

import click

from grmp_score.cli.completion import complete_model


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--revision", help="Branch, tag or commit of the Hub repository.")
@click.option("--json", "as_json", is_flag=True, help="Everything, with the whole configuration, as JSON.")
def command(model: str | None, revision: str | None, as_json: bool) -> None:
    """Show what a set of weights is.

    MODEL is a weights folder, a Hub repository (owner/name) or a bundled model (default: mini).  Shown are its
    checksum (the one in the rows of results), backbone and size, how it treats images, the label scale, the scores
    of reference photos, how it was trained, what was measured, and the versions of the libraries used here.

    \b
    Examples:
      grmp-score info
      grmp-score info my-camera --json
      grmp-score info owner/name --revision v1.0
    """
    from grmp_score import weights
    from grmp_score.report.description import facts, lines

    loaded = weights.load(model, revision=revision)
    known = facts(loaded)
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    for title, text in lines(loaded.config, known):
        click.echo(f"{title:>12}  {text}")
