"""``grmp-score export MODEL -o FILE.onnx``"""

from __future__ import annotations

from pathlib import Path

import click

from grmp_score.cli.overwriting import check_output


@click.command()
@click.argument("model", required=False)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write, .onnx."
)
@click.option("--revision", help="Branch, tag or commit of a Hub repository.")
@click.option("--overwrite", is_flag=True, help="Also replace a file that is there.")
def command(model: str | None, output: Path, revision: str | None, overwrite: bool) -> None:
    """Write a model as one ONNX file that needs nothing else.

    MODEL is a weights folder, a Hub repository (owner/name) or a bundled model (default: mini).

    The file takes "patches", float32 [batch, 3, S, S], normalised, and gives "p_high" [batch] in 0..1, and "logits"
    [batch, 2] (high, low).  Prompts are folded in, all operators are ONNX's own.  Its metadata say, as JSON, how
    patches are cut ("preprocess"), "name", "checksum", "label_scale" and "text_features".  A program that uses
    it is examples/score_with_onnx.py.

    \b
    Example:
      grmp-score export -o mini.onnx
    """
    from grmp_score import weights

    if output.suffix.lower() != ".onnx":
        raise click.BadParameter(f"the name of an ONNX file ends in .onnx, got {str(output)!r}", param_hint="-o")
    loaded = weights.load(model, revision=revision)
    check_output(output, [model or ""], overwrite=overwrite)
    loaded.export(output)
    size = output.stat().st_size / 1e6
    click.echo(f"wrote {output} ({loaded.config.name}, {size:.1f} MB)", err=True)
