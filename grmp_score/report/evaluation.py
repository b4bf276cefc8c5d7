"""The result of an evaluation as text: a table for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
from typing import IO, TYPE_CHECKING, Any

from grmp_score.display import printable
from grmp_score.files import finite_or_none
from grmp_score.report.text import console_on, direction, ends, interval, number, plain_table, short_names

if TYPE_CHECKING:  # neither is needed to show --help
    from rich.console import Console

    from grmp_score.trainer.data.labels import Labels
    from grmp_score.trainer.data.raters import RaterAgreement
    from grmp_score.trainer.evaluation import Agreement, EvaluationResult

FORMATS = ("table", "json")


def write_json(stream: IO[str], result: EvaluationResult, labels: Labels, **context: Any) -> None:
    """Writes one JSON object; NaN becomes null.

    Args:
        stream: where to.
        result: what was found.
        labels: what the model was compared with.
        context: further entries that come first, such as the model's name.
    """
    scale = labels.scale
    raters = result.raters
    data = {
        **context,
        "labels": {
            "path": str(labels.source),
            "images": len(labels),
            "score_column": labels.score_column,
            "minimum": scale.minimum,
            "maximum": scale.maximum,
            "higher_is_better": scale.higher_is_better,
        },
        "overall": result.overall.as_dict(),
        "groups": {name: group.as_dict() for name, group in result.groups.items()},
        "raters": None
        if raters is None
        else {
            "raters": raters.raters,
            "fewest_ratings": raters.fewest,
            "most_ratings": raters.most,
            "srcc": finite_or_none(raters.srcc),
            "plcc": finite_or_none(raters.plcc),
            "compared": raters.compared,
            "reliability": finite_or_none(raters.reliability),
            "ceiling": finite_or_none(raters.ceiling),
        },
        "worst": [
            {
                "path": str(w.path),
                "row": w.row,
                "label": w.label,
                "score": w.score,
                "expected": finite_or_none(w.expected),
            }
            for w in result.worst
        ],
        "unscored": [{"path": str(u.path), "row": u.row, "error": u.error} for u in result.unscored],
        "seconds": round(result.seconds, 3),
    }
    stream.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_table(stream: IO[str], result: EvaluationResult, labels: Labels, *, model: str, by: str | None) -> None:
    """Writes tables: the figures, the groups, the raters' agreement and the worst disagreements."""
    from rich.markup import escape

    console = console_on(stream, highlight=False)
    scale, unit = labels.scale, escape(labels.score_column)
    source = escape(short_names([str(labels.source)])[0])
    console.print(f"[bold]{escape(model)}[/] against {source}")
    console.print(
        f"{result.overall.n} of {len(labels)} images; {unit} {scale.minimum:g} .. {scale.maximum:g}, "
        f"{direction(scale.higher_is_better)} ({escape(ends(labels))})\n"
    )
    span = scale.maximum - scale.minimum
    _figures(console, result.overall, unit, span)
    if result.groups:
        _groups(console, result.groups, escape(by or ""), span)
    if result.raters is not None:
        _raters(console, result.raters)
    if result.worst:
        _worst(console, result, unit, span)


def _figures(console: Console, overall: Agreement, unit: str, span: float) -> None:
    table = plain_table("", "", "95 % interval")
    table.add_column("compares")
    after, curve = {
        "logistic": ("after logistic", "by a fitted curve"),
        "linear": ("after line", "by a fitted line, for want of data"),
        "mean": ("after mean", "but no curve can be fitted"),
    }[overall.fit.kind]
    table.add_row("SRCC", number(overall.srcc), interval(overall.srcc_interval), "order of the images")
    table.add_row("KRCC", number(overall.krcc), "", "order within pairs")
    table.add_row("PLCC", number(overall.plcc), interval(overall.plcc_interval), "distances, by a straight line")
    table.add_row(f"PLCC {after}", number(overall.plcc_logistic), "", f"distances, {curve}")
    table.add_row(f"RMSE {after}", number(overall.rmse, span), "", f"in units of {unit}; 0 is perfect")
    console.print(table)
    console.print("[dim]SRCC, KRCC, PLCC: -1 .. 1; 1 is perfect, 0 chance, below 0 the wrong way round[/]")


def _groups(console: Console, groups: dict[str, Agreement], by: str, span: float) -> None:
    from rich.markup import escape

    table = plain_table(by, "n", "SRCC", "95 % interval", "KRCC", "PLCC", "RMSE")
    for name, group in groups.items():
        cells = (
            number(group.srcc),
            interval(group.srcc_interval),
            number(group.krcc),
            number(group.plcc),
            number(group.rmse, span),
        )
        table.add_row(escape(printable(name)), str(group.n), *cells)
    console.print()
    console.print(table)
    console.print("[dim]interval: of SRCC; -: too few images to say; RMSE on the curve of all images[/]")


def _raters(console: Console, raters: RaterAgreement) -> None:
    ratings = f"{raters.fewest}" if raters.fewest == raters.most else f"{raters.fewest} to {raters.most}"
    console.print(f"\n{raters.raters} raters, {ratings} ratings per image")
    console.print(f"one against the mean of the others: SRCC {number(raters.srcc)}, PLCC {number(raters.plcc)}")
    if math.isnan(raters.ceiling):
        console.print("[dim]too few ratings for a ceiling[/]")
        return
    console.print(f"ceiling: PLCC {number(raters.ceiling)}, no scorer can be expected above it")
    console.print(
        f"[dim]means over {raters.compared} raters; ceiling: root of the mean opinion's reliability, "
        f"{number(raters.reliability)},\nestimated from random halves of the raters[/]"
    )


def _worst(console: Console, result: EvaluationResult, unit: str, span: float) -> None:
    from rich.markup import escape

    table = plain_table("worst disagreements", "row", unit, "expected", "score")
    for name, w in zip(short_names([str(w.path) for w in result.worst]), result.worst, strict=True):
        table.add_row(escape(name), str(w.row), number(w.label, span), number(w.expected, span), number(w.score))
    console.print()
    console.print(table)
    console.print(f"[dim]score: p(high quality), 0 bad .. 1 good; expected: {unit} by the curve[/]")
