"""``grmp-score label``"""

from __future__ import annotations

import contextlib
import getpass
import math
import random
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grmp_score.cli.options import device_option, exclude_option, model_options, open_scorer
from grmp_score.cli.overwriting import check_output
from grmp_score.display import printable
from grmp_score.images.find import EXCLUDED, find_images

if TYPE_CHECKING:
    from grmp_score.label.store import LabelFile


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        return "me"


def _take_stars(file: LabelFile, paths: Sequence[str], rater: str) -> int:
    """Adds the ratings of photos that the rater has given no label yet; how many."""
    from grmp_score.label.store import Label
    from grmp_score.sidecars.ratings import read_rating

    labelled = {label.image for label in file.read() if label.rater == rater}
    rated = [(file.name_of(path), read_rating(path).given) for path in paths]
    new = [Label(name, max(0.0, stars), rater, "", math.nan) for name, stars in rated if stars]
    cells = [label.cells for label in new if label.image not in labelled]
    if cells:
        file.change(lambda rows: [*rows, *cells])
    return len(cells)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Labels: read at the start, and written at every click.",
)
@click.option(
    "--scale",
    type=click.Choice(["5", "100"]),
    default="5",
    help="Grades 1 to 5 by key, or 0 to 100 by slider; a rejected photo gets 0.",
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Show two photos and ask which is better; answers are kept in FILE.pairs.csv, and FILE.csv gets the "
    "scores that follow from them (Bradley-Terry) with standard errors.",
)
@click.option("--count", type=click.IntRange(1), default=100, help="Labels or answers to give; you may give more.")
@click.option(
    "--rater",
    default=_login_name,
    show_default="your login name",
    help="Who rates; several people may share a file.",
)
@click.option(
    "--order",
    type=click.Choice(["stratified", "random"]),
    default="stratified",
    help="In which photos come: evenly over the model's scores, or a fair sample.",
)
@click.option(
    "--sample",
    type=click.IntRange(2),
    default=2000,
    help="Of a larger folder so many photos are drawn; all of them are looked at by the model.",
)
@click.option(
    "--stars",
    is_flag=True,
    help="Begin with the stars that photos have already (XMP, EXIF) where the file has no label of yours.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of everything random.")
@model_options
@device_option
@exclude_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="any", help="To serve the page at.")
@click.option("--open/--no-open", "opens", default=True, help="Open the page in the browser.")
def command(
    paths: tuple[str, ...],
    output: Path,
    scale: str,
    pairs: bool,
    count: int,
    rater: str,
    order: str,
    sample: int,
    stars: bool,
    seed: int,
    exclude: tuple[str, ...],
    port: int,
    opens: bool,
    **given: Any,
) -> None:
    """Rate photos in the browser, and see what a model learns from it.

    The page is served from this machine to this machine alone and needs no network.  Every click is on disk before
    the next photo shows; started again with the same file, it goes on where it stopped.  Ctrl-C ends it.  After 20,
    40, 80 ... labels the page says how well the model agrees with labels that it has not seen; a button trains,
    shows the photos in the new order, and saves the model.  It needs the extra [label].

    \b
    Keys: 1 to 5 rate, x rejects, s skips, b goes back, u takes the last label back, z shows 100 %, p pauses,
    t trains; with --pairs the arrow keys choose.

    \b
    Examples:
      grmp-score label photos/ -o mine.csv
      grmp-score label photos/ -o mine.csv --scale 100 --rater ann
      grmp-score label photos/ -o mine.csv --pairs

    Exit status: 0 ended, 2 wrong usage.
    """
    from grmp_score.label.learner import Learner
    from grmp_score.label.pairs import PairSession
    from grmp_score.label.photos import Photos
    from grmp_score.label.server import listen, make_app, make_server, needs_extra, new_token
    from grmp_score.label.session import Scale, Session
    from grmp_score.label.store import LabelFile

    needs_extra()
    if stars and (pairs or scale != "5"):
        raise click.UsageError("--stars are grades 1 to 5; leave out --pairs and --scale")
    if not (rater := rater.strip()) or not rater.isprintable():
        raise click.BadParameter(f"{rater!r} is no name", param_hint="--rater")
    check_output(output, [], overwrite=True)
    found = [path for path in find_images(paths, exclude=[*EXCLUDED, *exclude]) if "://" not in path]
    photos = Photos.of(found, paths)
    if len(photos) < 2:
        raise click.UsageError(f"{len(photos)} images found in {', '.join(paths)}, expected at least 2")
    if len(photos) < len(found):
        left_out = len(found) - len(photos)
        click.echo(f"Note: {left_out} files are left out: links that lead out, names twice or no text", err=True)
    if len(photos) > sample:
        click.echo(f"Note: {sample} of {len(photos)} photos are drawn (--sample)", err=True)
        kept = sorted(random.Random(seed).sample(range(len(photos)), sample))
        photos = Photos.of([photos.paths[i] for i in kept], paths)
    cache = output.with_name(f".{output.stem}.features")
    learner = Learner(photos, open_scorer(given), order, seed, cache)
    session: Session | PairSession
    if pairs:
        session = PairSession(photos, output, learner, rater=rater, target=count, seed=seed)
    else:
        file = LabelFile(output)
        if stars:
            click.echo(f"{_take_stars(file, photos.paths, rater)} labels taken from stars", err=True)
        session = Session(photos, file, learner, rater=rater, scale=Scale(int(scale)), target=count, seed=seed)
    with listen(port) as listener:
        port, token = listener.getsockname()[1], new_token()
        address = f"http://127.0.0.1:{port}/{token}/"
        click.echo(f"{len(photos)} photos; {session.state()['done']} labels of {printable(rater)}", err=True)
        click.echo(f"Rate them at {address}  (Ctrl-C ends)", err=True)
        learner.start()
        if opens:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            make_server(make_app(session, port=port, token=token, title=", ".join(paths))).run(sockets=[listener])
    click.echo(f"\n{session.state()['done']} labels of {printable(rater)} in {output}", err=True)
