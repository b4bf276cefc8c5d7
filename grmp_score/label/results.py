"""What was learned, as the page shows it: the agreement in words, and the photos that moved."""

from __future__ import annotations

from typing import Any

from grmp_score.label.learner import Learned
from grmp_score.label.pairs import PairSession
from grmp_score.label.session import Session
from grmp_score.report.text import interval, number

#: Photos shown as the best, as the worst, and as the largest changes.
SHOWN = 24
#: Rise of SRCC from half of the labels to all of them, from which more labels are likely to help.
RISE = 0.01


def results(session: Session | PairSession) -> dict[str, Any]:
    """JSON-ready: ``sentences``, and of the photos ``best``, ``worst`` and ``changed``, each after and before.

    A photo is its number, its name, its ranks after and before (1 is best), and its label or None.
    """
    learned = session.learner.learned
    if learned is None:
        return {"sentences": [], "sections": []}
    after, before = _ranking(learned.after), _ranking(learned.before)
    old, new = ({n: place for place, n in enumerate(order, 1)} for order in (before, after))
    scores = session.scores
    changed = sorted(after, key=lambda n: -abs(old[n] - new[n]))

    def cards(numbers: list[int]) -> list[dict[str, Any]]:
        return [
            {"photo": n, "name": session.photos.names[n], "after": new[n], "before": old[n], "label": scores.get(n)}
            for n in numbers[:SHOWN]
        ]

    said = sentences(learned, session.consistency())
    if len(after) < len(session.photos):
        said.append(f"The order is that of {len(after)} photos; the others have not been looked at yet.")
    return {
        "sentences": said,
        "sections": [
            {"heading": "Best", "after": cards(after), "before": cards(before)},
            {"heading": "Worst", "after": cards(after[::-1]), "before": cards(before[::-1])},
            {"heading": "Largest changes", "after": cards(changed), "before": []},
        ],
    }


def _ranking(values: dict[int, float]) -> list[int]:
    return sorted(values, key=lambda n: (-values[n], n))


def sentences(learned: Learned, consistency: dict[str, Any] | None) -> list[str]:
    """What the page says about a training."""
    said = [
        f"Learned from {len(learned.labels)} labels. On labels it has not seen (cross-validation) the model agrees "
        f"with you at SRCC {number(learned.srcc)} (95 %: {interval(learned.interval)}); before it was "
        f"{number(learned.srcc_before)}."
    ]
    if consistency is not None:
        said.append(
            f"You agree with yourself at {number(consistency['srcc'])} on {consistency['repeats']} photos that "
            f"were shown again, so that no model can be expected above {number(consistency['ceiling'])} "
            f"(95 %: {interval(consistency['interval'])})."
        )
    if learned.srcc < learned.srcc_before:
        said.append("So far the model as it was agrees better.")
    (few, low), (many, high) = learned.curve
    rise = f"Learning curve: SRCC {number(low)} from {few} and {number(high)} from {many} labels."
    if not learned.interval[0] > 0:
        said.append(f"{rise} With so few labels this may be chance: rate more photos before you judge.")
    elif high - low > RISE:
        said.append(f"{rise} It still rises: more labels are likely to help.")
    else:
        said.append(f"{rise} It hardly rises: more labels may not help much.")
    return said
