"""The model card of an adapted model: YAML that the Hub reads, and text for people, both from its configuration."""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import TYPE_CHECKING, Any

from grmp_score.display import printable
from grmp_score.report.adaptation import MEASURED_MODELS, conclusion, cross_validation, measured_on, regularisation
from grmp_score.report.text import interval, number, templates

if TYPE_CHECKING:  # these take seconds to import
    from huggingface_hub import EvalResult
    from jinja2 import Template

    from grmp_score.config import ModelConfig
    from grmp_score.weights.folder import Weights

TAGS = ["image-quality-assessment", "no-reference-iqa", "prompt-learning", "few-shot"]

#: Settings that are told to people, by their name in `FewShotConfig`.
_SETTINGS = {
    "train": "trained",
    "head_first": "closed form first",
    "train_visual_prompts": "visual prompts trained",
    "prompt_dropout": "dropout of the visual prompts",
    "optimizer": "optimizer",
    "lr": "learning rate",
    "momentum": "momentum (SGD)",
    "weight_decay": "weight decay",
    "schedule": "schedule of the learning rate",
    "warm_up_epochs": "epochs of warm-up",
    "epochs": "most epochs",
    "text_first_epochs": "most epochs of the text side alone",
    "batch_size": "images per step",
    "crops_per_image": "crops per image",
    "crops_per_step": "crops per image and step",
    "crops_per_epoch": "times an image comes up in an epoch",
    "flips": "mirrored crops",
    "qgr_lambda": "lambda of eq. (8)",
    "qgr_form": "form of eq. (8)",
    "qgr_max_kl": "L_kl above which lambda is 1",
    "folds": "folds",
    "look_every": "epochs between two looks at a fold",
}

#: Those that matter without gradient descent.
_OF_ALL = ("train", "crops_per_image", "flips", "folds")


def adapter_sha256(weights: Weights) -> str:
    """SHA-256 of these weights' ``adapter.safetensors`` as `Weights.save` writes it."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in weights.adapter.items()}
    return hashlib.sha256(save(tensors, metadata={"format": "pt"})).hexdigest()


def front_matter(card: str) -> dict[str, Any]:
    """The YAML front matter of a card; empty where there is none that can be read."""
    from huggingface_hub import ModelCard

    if not card.startswith("---"):
        return {}
    try:
        return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception:  # somebody else's card, and the errors of its parser share no base class with ours
        return {}


def model_card(config: ModelConfig, start: Weights, *, folder: str, repo: str | None = None) -> str:
    """The text of ``README.md``.

    The licence is that of the start model's card; where that has none it is ``unknown``, not a guess.

    Args:
        config: of the adapted model: ``training["stage_2"]`` says how it was made, besides what `adapt` writes with
            ``start_adapter_sha256`` and ``test`` (name of the test file or None), and ``stage_2_earlier`` what
            went before; ``results`` are those of `adaptation.publishable`.
        start: the weights it was adapted from.
        folder: name of the folder that is written.
        repo: the Hub repository that those came from, if they did.
    """
    from huggingface_hub import ModelCardData

    stage, results = config.training["stage_2"], config.results
    inherited = front_matter(start.card)
    licence, licence_name, licence_link = (
        value if isinstance(value := inherited.get(key), str) else None
        for key in ("license", "license_name", "license_link")
    )
    scale = config.label_scale
    assert scale is not None  # adapted models have one
    worst, best = scale.to_label(0.0), scale.to_label(1.0)
    measured = results["gain"] is not None
    evaluations = _eval_results(config) if measured else []
    header = ModelCardData(
        library_name="grmp_score",
        pipeline_tag="image-classification",
        license=licence or "unknown",
        license_name=licence_name,
        license_link=licence_link,
        base_model=repo or start.config.backbone.repo,
        tags=TAGS,
        model_name=_one_line(config.name) if evaluations else None,
        eval_results=evaluations or None,
    )
    phases = {"text": "of the text side alone", "all": "of all that is trained"}
    epochs = [f"{count} {phases[phase]}" for phase, count in results["chosen"].items() if phase in phases]
    folds = results["cross_validation"]
    return _template().render(
        header=header.to_yaml(),
        config=config,
        stage=stage,
        results=results,
        worst=worst,
        best=best,
        span=scale.maximum - scale.minimum,
        epochs=epochs,
        settings={
            name: stage["settings"][key]
            for key, name in _SETTINGS.items()
            if key in stage["settings"] and (epochs or key in _OF_ALL)
        },
        measured=measured,
        models=MEASURED_MODELS,
        measured_on=measured_on(results) if measured else "",
        conclusion=conclusion(results),
        cross_validation=cross_validation(folds) if folds else "",
        regularisation=regularisation(results["qgr"]) if results["qgr"] else "",
        repo=repo,
        folder=folder,
        licence=licence,
        start_name=start.config.name,
        backbone_sha256=start.config.backbone.sha256,
    )


def _template() -> Template:
    """The card's template: Markdown, in which text is escaped as HTML is, and names mostly stand in code."""
    from markupsafe import Markup

    environment = templates()
    environment.filters |= {
        "one_line": _one_line,
        "code": lambda name: Markup(f"`{_one_line(str(name)).replace('`', chr(39))}`"),
        "shell": lambda name: Markup(shlex.quote(printable(name))),
        "python": lambda name: Markup(json.dumps(printable(name))),
        "number": number,
        "interval": interval,
    }
    return environment.get_template("card.md")


def _one_line(name: str) -> str:
    """A name on one line, that does not end a cell of a table."""
    return printable(name).replace("|", "/")


def _eval_results(config: ModelConfig) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    stage, results = config.training["stage_2"], config.results
    own = results["measured_on"] == "cross-validation"
    source = printable(stage["labels"] if own else stage.get("test") or stage["labels"])
    name = f"{source}, {results['after']['n']} images" + (", out of fold" if own else " not trained on")
    metrics = {"srcc": "spearmanr", "plcc": "pearsonr", "krcc": "kendalltau"}
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image quality assessment",
            dataset_type="private",
            dataset_name=name,
            metric_type=metric,
            metric_name=f"{key.upper()} (95 % interval {interval(results['after'][f'{key}_interval'])})",
            metric_value=round(results["after"][key], 4),
        )
        for key, metric in metrics.items()
        if results["after"][key] is not None
    ]
