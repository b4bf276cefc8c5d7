"""``grmp-score convert FILE.pt -o DIR``"""

from __future__ import annotations

from pathlib import Path

import click

from grmp_score.cli.overwriting import check_folder


@click.command()
@click.argument("checkpoint", metavar="FILE.pt", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option("--name", help="Name of the weights.  [default: the file's name]")
@click.option(
    "--base",
    metavar="NAME:TAG",
    help="For a checkpoint of stage 1: the CLIP it was trained on (ViT-B-16-quickgelu:openai), or weights of it.",
)
def command(checkpoint: Path, output: Path, name: str | None, base: str | None) -> None:
    """Convert an official GRMP-IQA checkpoint into a weights folder.

    The pickle is read without executing any code in it, whether it is a state_dict, one inside of a training
    checkpoint, or a whole model.  The authors' preprocessing (exact 244x244 resize, centre 224 patch, ImageNet
    statistics) becomes the default; use --patches 10 when scoring for ten patches.

    \b
    Example:
      grmp-score convert clive_50_prompt_lda_5.0.pt -o clive-50
      grmp-score photos/ --model clive-50
    """
    from grmp_score.weights.official import load_official

    check_folder(output)
    weights = load_official(checkpoint, name=name, base=base)
    weights.save(output)
    click.echo(f"{checkpoint}: {weights.config.training['form']}", err=True)
    click.echo(f"wrote {output} ({weights.config.name}); use it with: grmp-score PATHS --model {output}", err=True)
