"""Quality-aware gradient regularisation: eqs. (7) and (8) (METHOD section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor


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
) -> tuple[dict[str, Tensor], float | None]:
    """Eq. (8): G = G_qua where G_qua . G_sem <= 0, else G_qua - lambda (G_qua . G_sem / ||G_sem||^2) G_sem.

    Args:
        g_qua: gradient of L_ce (eq. 3) by parameter.
        g_sem: gradient of L_kl (eq. 7); parameters that are missing or None are not reached by it and keep their
            G_qua, as do those whose G_sem is zero.
        qgr_lambda: 1 makes the result orthogonal to G_sem, 0 returns G_qua.
        form: ``"per_parameter"`` applies the equation to every tensor by itself (the authors' code), ``"global"``
            to all of them as one vector.

    Returns:
        G by parameter, and the angle in degrees, 0..180, between G_qua and G_sem as wholes, over the parameters
        that L_kl reaches; None when one of them is zero there.
    """
    reached = {name: g for name in g_qua if (g := g_sem.get(name)) is not None}
    result = dict(g_qua)
    for names in ([name] for name in reached) if form == "per_parameter" else [list(reached)]:
        unit = _scaled(reached, names)  # only the direction of G_sem matters; its squares must not underflow
        dot = _dot(g_qua, unit, unit)
        if dot > 0:
            factor = qgr_lambda * dot / _dot(unit, unit, unit)
            result.update({name: g_qua[name] - factor * unit[name] for name in unit})
    return result, _angle(_scaled(g_qua, reached), _scaled(reached, reached))


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
