"""Quality-aware gradient regularisation: eqs. (7) and (8) (METHOD section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

#: L_kl in nats up to which its gradient is taken for rounding noise and not projected on, by the precision of the
#: computing.  Where the bundled model is its own teacher, L_kl comes out at up to 8e-8 and 7e-4 instead of 0.
NOISE = {"float32": 1e-6, "bfloat16": 1e-2}


class Projection(NamedTuple):
    """What eq. (8) makes of two gradients.

    Attributes:
        gradient: G by parameter.
        angle: in degrees, 0..180, between G_qua and G_sem as wholes, over the parameters that L_kl reaches; None
            when one of them is zero there.
        projected: names of the parameters in which G is not G_qua.
        reached: number of parameters that L_kl reaches.
    """

    gradient: dict[str, Tensor]
    angle: float | None
    projected: tuple[str, ...]
    reached: int

    @property
    def share(self) -> float:
        """Of the parameters that L_kl reaches those that were projected, 0..1."""
        return len(self.projected) / max(1, self.reached)


def semantic_loss(scene_logits: Tensor, teacher: Tensor) -> Tensor:
    """Eq. (7): L_kl = -sum_i p_sem(w_i|x) log(p_qua(w_i|x) / p_sem(w_i|x)), which is KL(p_sem || p_qua).

    Args:
        scene_logits: of the adapted model [B, 9]; p_qua is their softmax (temperature 1).
        teacher: p_sem of the frozen original model [B, 9]; rows sum to 1, zeros are allowed.

    Returns:
        Scalar >= 0, mean over the batch.
    """
    return torch.nn.functional.kl_div(scene_logits.log_softmax(dim=-1), teacher, reduction="batchmean")


def project(
    g_qua: Mapping[str, Tensor],
    g_sem: Mapping[str, Tensor | None],
    qgr_lambda: float,
    form: Literal["per_parameter", "global"] = "per_parameter",
) -> Projection:
    """Eq. (8): G = G_qua where G_qua . G_sem <= 0, else G_qua - lambda (G_qua . G_sem / ||G_sem||^2) G_sem.

    Args:
        g_qua: gradient of L_ce (eq. 3) by parameter.
        g_sem: gradient of L_kl (eq. 7); parameters that are missing or None are not reached by it and keep their
            G_qua, as do those whose G_sem is zero.
        qgr_lambda: 1 makes the result orthogonal to G_sem, 0 returns G_qua.
        form: ``"per_parameter"`` applies the equation to every tensor by itself (the authors' code), ``"global"``
            to all of them as one vector.
    """
    reached = {name: g for name in g_qua if (g := g_sem.get(name)) is not None}
    result, projected = dict(g_qua), []
    for names in ([name] for name in reached) if form == "per_parameter" else [list(reached)]:
        unit = _scaled(reached, names)  # only the direction of G_sem matters; its squares must not underflow
        dot = _dot(g_qua, unit, unit)
        if dot > 0:
            factor = qgr_lambda * dot / _dot(unit, unit, unit)
            result.update({name: g_qua[name] - factor * unit[name] for name in unit})
            projected += list(unit)
    angle = _angle(_scaled(g_qua, reached), _scaled(reached, reached))
    return Projection(result, angle, tuple(projected), len(reached))


def _scaled(gradient: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors divided by their largest absolute value; empty when all are zero."""
    names = list(names)
    peak = max((float(gradient[name].abs().max()) for name in names), default=0.0)
    return {name: gradient[name] / peak for name in names} if peak > 0 else {}


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: Iterable[str]) -> float:
    return math.fsum(float((one[name] * other[name]).sum()) for name in names)


def _angle(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    if not one or not other:
        return None
    cosine = _dot(one, other, other) / math.sqrt(_dot(one, one, one) * _dot(other, other, other))
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
