"""The model card of an adapted model: YAML that the Hub reads, and text for people, both from its configuration."""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import TYPE_CHECKING, Any

from grmp_score.report.adaptation import CONTENDERS, cross_validation, interval, measured_on, shown, verdict
from grmp_score.report.rows import printable

if TYPE_CHECKING:  # these take seconds to import
    from huggingface_hub import EvalResult

    from grmp_score.config import ModelConfig
    from grmp_score.weights.folder import Weights

TAGS = ["image-quality-assessment", "no-reference-iqa", "prompt-learning", "few-shot"]

#: Settings that are told to people, by their name in `FewShotConfig`.
_SETTINGS = {
    "train": "trained",
    "head_first": "closed form first",
    "train_visual_prompts": "visual prompts trained",
    "optimizer": "optimizer",
    "lr": "learning rate",
    "epochs": "most epochs",
    "text_first_epochs": "most epochs of the text side alone",
    "batch_size": "images per step",
    "crops_per_image": "crops per image",
    "crops_per_step": "crops per image and step",
    "flips": "mirrored crops",
    "qgr_lambda": "lambda of eq. (8)",
    "qgr_form": "form of eq. (8)",
    "folds": "folds",
}

#: Those that matter without gradient descent.
_OF_ALL = ("train", "crops_per_image", "flips", "folds")

_CITATION = (
    "The method is that of Li et al., *Few-Shot Image Quality Assessment via Adaptation of Vision-Language Models* "
    "(GRMP-IQA, [arXiv 2409.05381](https://arxiv.org/abs/2409.05381)); this is not their model."
)


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
            went before; ``results`` are those of `adaptation.complete`.
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
        model_name=_plain(config.name) if evaluations else None,
        eval_results=evaluations or None,
    )
    sections = [
        f"# {_plain(config.name)}",
        _what(config, stage),
        "## How it was made",
        _made(config, stage, start, repo),
        "## Measured",
        _measured(config, stage, results) if measured else verdict(results),
        "## What it is not",
        _not(results),
        "## How to use it",
        _use(folder),
        "## Licence",
        _licence(licence, start),
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _what(config: ModelConfig, stage: dict[str, Any]) -> str:
    scale = config.label_scale
    assert scale is not None  # adapted models have one
    best, worst = (scale.maximum, scale.minimum) if scale.higher_is_better else (scale.minimum, scale.maximum)
    return (
        f"Scores images as the person (or people) behind {_code(stage['labels'])} would: p(high quality), from 0, "
        f"which stands for {worst:g} on the scale of the labels, to 1, which stands for {best:g}. "
        f"An adaptation of {_code(stage['start'])}{_before(config)}. {_CITATION}"
    )


def _before(config: ModelConfig) -> str:
    """What the start model had been adapted to itself, oldest first."""
    steps = [
        f"to {_code(str(earlier.get('labels')))} ({earlier.get('shots')} images, from "
        f"{_code(str(earlier.get('start')))})"
        for earlier in config.training.get("stage_2_earlier", ())
    ]
    return f", which had been adapted itself: {', then '.join(steps)}" if steps else ""


def _made(config: ModelConfig, stage: dict[str, Any], start: Weights, repo: str | None) -> str:
    chosen = {"text": "of the text side alone", "all": "of all that is trained"}
    epochs = ", ".join(f"{n} {chosen[phase]}" for phase, n in config.results["chosen"].items() if phase in chosen)
    how = "chosen by cross-validation" if config.results["cross_validation"] else "as asked for, not chosen"
    rows = {
        "labels": f"{_code(stage['labels'])}, {stage['shots']} images",
        "seed": stage["seed"],
        "method": stage["method"],
        "semantic teacher": stage["teacher"] or "none",
        "trained parameters": f"{stage['trained_parameters']:,}",
        "epochs": f"{epochs}; {how}" if epochs else "none, one step in closed form",
        "computed in": config.results["precision"],
        "start model": _code(stage["start"]) + (f" of the Hub repository {_code(repo)}" if repo else ""),
        "its adapter": f"sha256 `{stage['start_adapter_sha256']}`",
        "its backbone": f"sha256 `{start.config.backbone.sha256}`"
        if start.config.backbone.sha256
        else "not recorded",
    }
    told = {k for k in _SETTINGS if k in stage["settings"] and (epochs or k in _OF_ALL)}
    settings = {name: stage["settings"][key] for key, name in _SETTINGS.items() if key in told}
    lines = [f"| {name} | {_value(value)} |" for name, value in {**rows, **settings}.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _measured(config: ModelConfig, stage: dict[str, Any], results: dict[str, Any]) -> str:
    scale = config.label_scale
    assert scale is not None
    span = scale.maximum - scale.minimum
    lines = [
        "| | SRCC | PLCC | KRCC | RMSE |",
        "|---|---|---|---|---|",
    ]
    for name, who in CONTENDERS.items():
        figures = results[name]
        cells = [
            f"{shown(figures[key], s or 1.0)} ({interval(figures[f'{key}_interval'], s)})"
            for key, s in (("srcc", 0.0), ("plcc", 0.0), ("krcc", 0.0), ("rmse", span))
        ]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    of = _code(stage.get("test") or stage["labels"])
    source = "" if results["measured_on"] == "cross-validation" else f" They are of {of}."
    lost = f" {len(results['unscored'])} further images could not be read." if results["unscored"] else ""
    notes = (
        f"{measured_on(results)}{source}{lost} In brackets bootstrap 95 % intervals. SRCC, PLCC, KRCC: 1 is "
        "perfect, 0 chance; RMSE: in units of the labels, after a fitted curve. Ridge regression: closed form, on "
        "the image features of the start model, with the same training images."
    )
    folds = results["cross_validation"]
    parts = ["\n".join(lines), notes, verdict(results)]
    return "\n\n".join([*parts, cross_validation(folds)] if folds else parts)


def _not(results: dict[str, Any]) -> str:
    return (
        f"* Not a measure of quality as such: it has learned from {results['shots']} images what one set of labels "
        "calls good, and knows nothing of subjects, cameras or faults that are not among them.\n"
        "* Not measured on anything but the images named above.\n"
        "* Not for decisions about people."
    )


def _use(folder: str) -> str:
    shell, python = shlex.quote(printable(folder)), json.dumps(printable(folder))
    return (
        "From where this folder lies, or with the name of a Hub repository in place of its own:\n\n"
        f"    grmp-score PATHS --model {shell}\n\n"
        "```python\n"
        "from grmp_score import Scorer\n\n"
        f"scorer = Scorer.from_pretrained({python})\n"
        'score = scorer.score("photo.jpg")\n'
        "print(score.value)  # p(high quality), 0 bad .. 1 good\n"
        "print(scorer.config.label_scale.to_label(score.value))  # on the scale of the labels\n"
        "```"
    )


def _licence(licence: str | None, start: Weights) -> str:
    of = _code(start.config.name)
    if licence:
        return (
            f"The terms of the start model {of} are passed on. Those of the images and labels are known to whoever "
            "made this model, and not stated here."
        )
    return f"Unknown: the start model {of} states none. Find out before passing this model on."


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


def _code(name: str) -> str:
    """A name as code: nothing in it is markup."""
    return f"`{_plain(name).replace('`', chr(39))}`"


def _plain(name: str) -> str:
    """A name on one line, that does not end a cell of a table."""
    return printable(name).replace("|", "/")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
