"""The card of an adapted model: what the Hub reads of it, and that it says only what is known."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from grmp_score.cli.main import cli
from grmp_score.config import LabelScale, ModelConfig
from grmp_score.report.adaptation import conclusion
from grmp_score.report.card import adapter_sha256, front_matter, model_card
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.weights.folder import ADAPTER, Weights

from .conftest import Photo, random_weights
from .hub_server import HubServer

#: Keys of a front matter and their types, as the Hub documents them
#: (https://github.com/huggingface/hub-docs/blob/main/modelcard.md).
HUB_KEYS = {
    "library_name": str,
    "license": str,
    "license_name": str,
    "license_link": str,
    "pipeline_tag": str,
    "base_model": str,
    "tags": list,
    "model-index": list,
}


def figures(srcc: float, n: int = 40) -> dict[str, Any]:
    """Agreement as results.json has it."""
    values: dict[str, Any] = {"n": n, "fit": {"kind": "linear", "parameters": [1.0, 0.0]}, "plcc_logistic": srcc}
    for key in ("srcc", "plcc", "krcc"):
        values |= {key: srcc, f"{key}_interval": [srcc - 0.1, srcc + 0.1]}
    return {**values, "rmse": 0.5, "rmse_interval": [0.4, 0.6]}


def results(before: float = 0.3, ridge: float = 0.5, after: float = 0.6, **changes: Any) -> dict[str, Any]:
    """Results with these SRCC; a difference under 0.1 may be chance."""
    folds = {"srcc_mean": 0.55, "srcc_std": 0.1, "plcc_mean": 0.5, "plcc_std": 0.1}
    gains = {
        f"over_{name}": {"srcc": after - value, "srcc_interval": [after - value - 0.1, after - value + 0.1]}
        for name, value in (("before", before), ("ridge", ridge))
    }
    return {
        "measured_on": "test",
        "before": figures(before),
        "ridge": figures(ridge),
        "after": figures(after),
        "gain": gains,
        "n_test": 40,
        "unscored": [],
        "left_out": [],
        "measured_in": "float32",
        "checked": None,
        "cross_validation": {**folds, "folds": 5, "before": folds, "ridge": folds, "curves": {"all": [0.3, 0.55]}},
        "chosen": {"text": 4, "all": 1},
        "qgr": None,
        "shots": 50,
        "seed": 7,
        "precision": "float32",
        **changes,
    }


#: Adaptations that went before: labels, images, start model.
STEPS = (("ann", 30, "mini"), ("bob", 40, "ann"))


@pytest.fixture
def make(tiny_weights: Weights) -> Callable[..., str]:
    """`make(results=..., stage=..., start=..., repo=...)` makes a card."""

    def card(
        *,
        found: dict[str, Any] | None = None,
        stage: dict[str, Any] | None = None,
        name: str = "my-camera",
        start: Weights = tiny_weights,
        repo: str | None = None,
        earlier: list[dict[str, Any]] | None = None,
    ) -> str:
        made = {
            "method": "fine-tuning with QGR",
            "start": "tiny",
            "labels": "mine.csv",
            "shots": 50,
            "seed": 7,
            "teacher": "original backbone",
            "trained_parameters": 12345,
            "settings": dataclasses.asdict(FewShotConfig(shots=50, seed=7)),
            "start_adapter_sha256": adapter_sha256(start),
            "test": None,
            **(stage or {}),
        }
        config = dataclasses.replace(
            start.config,
            name=name,
            label_scale=LabelScale(1.0, 5.0),
            training={"stage_2": made, **({"stage_2_earlier": earlier} if earlier else {})},
            results=found or results(),
        )
        return model_card(config, start, folder=name, repo=repo)

    return card


def test_an_adaptation_of_an_adapted_model_says_so(make: Callable[..., str]) -> None:
    """Every adaptation that led to the start model is named, oldest first; others say nothing of the kind."""
    earlier = [{"labels": f"{who}.csv", "shots": n, "start": start} for who, n, start in STEPS]
    card = make(stage={"start": "ann-bob"}, earlier=earlier)
    check(card)
    assert (
        "An adaptation of `ann-bob`, which had been adapted itself: to `ann.csv` (30 images, from `mini`), "
        "then to `bob.csv` (40 images, from `ann`)." in card
    )
    assert "adapted itself" not in make()


def check(card: str) -> dict[str, Any]:
    """What the Hub demands of a card, without the Hub: it parses, round-trips, and every entry has its form."""
    parsed = ModelCard(card)  # raises on YAML or a model index that are not as they must be
    assert str(parsed) == card, "the client would write it differently"
    data = front_matter(card)
    assert set(data) <= set(HUB_KEYS)
    for key, value in data.items():
        assert isinstance(value, HUB_KEYS[key]) and value, key
    assert re.fullmatch(r"[a-z0-9.-]+", data["license"])
    if data["license"] == "other":
        assert re.fullmatch(r"[a-z0-9.-]+", data["license_name"])
    if "model-index" in data:
        name, evaluations = model_index_to_eval_results(data["model-index"])
        assert name and all(isinstance(e.metric_value, float) for e in evaluations)
        assert all(e.dataset_name and e.dataset_type and e.task_type for e in evaluations)
    return data


def test_the_card_is_valid(make: Callable[..., str]) -> None:
    """Everything the Hub shows: library, task, licence, tags, figures."""
    card = make()
    data = check(card)
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "grmp_score",
        "image-classification",
        "mit",
    )
    _, evaluations = model_index_to_eval_results(data["model-index"])
    assert [(e.metric_type, e.metric_value) for e in evaluations] == [
        ("spearmanr", 0.6),
        ("pearsonr", 0.6),
        ("kendalltau", 0.6),
    ]
    assert evaluations[0].metric_name == "SRCC (95 % interval 0.50 .. 0.70)"
    assert evaluations[0].dataset_name == "mine.csv, 40 images not trained on"


def test_the_client_validates_it(make: Callable[..., str], hub: HubServer) -> None:
    """The client's own check, against the local Hub."""
    ModelCard(make()).validate(repo_type="model")
    assert hub.count("POST", "validate-yaml") == 1


def test_it_says_how_it_was_made(make: Callable[..., str], tiny_weights: Weights, tmp_path: Path) -> None:
    """Labels, shots, seed, settings, and the start model with the checksum of its file."""
    card = make()
    file = tiny_weights.save(tmp_path / "tiny") / ADAPTER
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    for text in ("`mine.csv`, 50 images", "| seed | 7 |", "12,345", "`tiny`", "| lambda of eq. (8) | 5.0 |"):
        assert text in card
    assert "from 0, which stands for 1 on the scale of the labels, to 1, which stands for 5" in card


def test_the_table_has_all_figures_with_intervals(make: Callable[..., str]) -> None:
    """Four figures of three contenders."""
    rows = re.findall(r"^\| (un-adapted|ridge|adapted)[^|]*\|(.*)\|$", make(), re.MULTILINE)
    assert [name for name, _ in rows] == ["un-adapted", "ridge", "adapted"]
    for _, cells in rows:
        assert len(re.findall(r"\d\.\d+ \(\d\.\d+ \.\. \d\.\d+\)", cells)) == 4


def test_licences_are_inherited_or_unknown(make: Callable[..., str], tiny_weights: Weights) -> None:
    """Nothing is made up."""

    def licence(front: str) -> dict[str, Any]:
        data = check(make(start=dataclasses.replace(tiny_weights, card=front)))
        return {key: value for key, value in data.items() if key.startswith("license")}

    other = "license: other\nlicense_name: research-weights\nlicense_link: https://example.org/terms\n"
    assert licence(f"---\n{other}---\n") == {
        "license": "other",
        "license_name": "research-weights",
        "license_link": "https://example.org/terms",
    }
    for front in (
        "",
        "# no header",
        "---\ntags: [a\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: [mit, x]\n---\n",
    ):
        assert licence(front) == {"license": "unknown"}
    assert "states none" in make(start=dataclasses.replace(tiny_weights, card=""))


def test_base_model(make: Callable[..., str], tiny_weights: Weights) -> None:
    """The Hub repository of the start, else that of its backbone, else none."""
    assert "base_model" not in check(make())
    assert check(make(repo="org/start"))["base_model"] == "org/start"
    backbone = dataclasses.replace(tiny_weights.config.backbone, repo="org/clip", filename="a.safetensors")
    config = dataclasses.replace(tiny_weights.config, backbone=backbone)
    start = dataclasses.replace(tiny_weights, config=config)
    assert check(make(start=start))["base_model"] == "org/clip"


@pytest.mark.parametrize(
    "name", ["a|b", "`code`", 'quo"te', "line\nbreak", "--- x", "a: b #c", "\udcff", "<b>", "🙂", "'", "no", "1.5"]
)
def test_odd_names_do_no_harm(make: Callable[..., str], name: str) -> None:
    """Names of files and models are text, not markup, YAML or Python."""
    card = make(name=name, stage={"labels": name, "test": name, "start": name})
    check(card)
    card.encode("utf-8")
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {3, 6}
    python = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    compile(python, "card", "exec")


def test_only_measured_numbers(make: Callable[..., str]) -> None:
    """Without a measurement there is neither a table nor a model index; cross-validation says that it is one."""
    card = make(found=results(measured_on=None, gain=None, cross_validation=None))
    assert "model-index" not in check(card) and "Nothing was measured" in card and "SRCC" not in card
    data = check(make(found=results(measured_on="cross-validation", n_test=0)))
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "mine.csv, 40 images, out of fold"
    constant = results()
    constant["after"] |= {"srcc": None, "krcc": None, "srcc_interval": [None, None]}
    assert len(check(make(found=constant))["model-index"][0]["results"][0]["metrics"]) == 1


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            results(0.2, 0.4, 0.6),
            "The adapted model did better than the un-adapted model by 0.400 (0.30 .. 0.50) and than the ridge "
            "regression on the un-adapted features by 0.200 (0.10 .. 0.30) in SRCC.",
        ),
        (
            results(0.2, 0.7, 0.6),
            "The ridge regression on the un-adapted features did better (SRCC 0.700 against 0.600, which may be "
            "chance). The adapted model did better than the un-adapted model by 0.400 (0.30 .. 0.50) in SRCC.",
        ),
        (results(0.8, 0.2, 0.6), "The un-adapted model did better (SRCC 0.800 against 0.600)."),
        (results(0.6, 0.2, 0.6), "The un-adapted model did as well (SRCC 0.600)."),
        (results(0.55, 0.57, 0.6), "Both may be chance: 0 lies in the interval."),
        (results(0.1, 0.57, 0.6), "One of these may be chance: 0 lies in the interval."),
        (results(0.6, 0.9, 0.6, chosen={"all": 0}), "Training did not help"),
        (results(0.6, 0.9, 0.6, chosen={"all": 0}), "The ridge regression on the un-adapted features did better"),
        (results(after=0.0) | {"after": {**figures(0), "srcc": None}}, "No agreement can be stated"),
        (results(gain=None), "Nothing was measured"),
    ],
)
def test_the_conclusion_is_plain(found: dict[str, Any], expected: str) -> None:
    """Who is best, by how much, and whether that may be chance."""
    assert expected in conclusion(found)


def test_the_card_of_a_real_run_works(
    tiny_config: ModelConfig, tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's card is valid, and both examples in it run as they are."""
    monkeypatch.chdir(tmp_path)
    random_weights(tiny_config).save("tiny")
    rows = ["image,dmos"]
    for i in range(20):
        photo(40, 40, i).save(f"{i}.png")
        rows.append(f"{i}.png,{(7 * i) % 20}")
    Path("mine.csv").write_text("\n".join(rows) + "\n")
    args = "adapt --labels mine.csv -m tiny --train prompts --epochs 1 --folds 2"
    assert CliRunner().invoke(cli, args.split()).exit_code == 0
    card = Path("mine-adapted/README.md").read_text(encoding="utf-8")
    check(card)
    assert "from 0, which stands for 19 on the scale of the labels, to 1, which stands for 0." in card
    photo(40, 40, 1).save("photo.jpg")
    printed: list[float] = []
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {"print": printed.append})
    value = Scorer.from_pretrained("mine-adapted").score("photo.jpg").value
    assert value is not None and printed == [value, pytest.approx(19 * (1 - value))]
    command = re.findall(r"^    grmp-score (.*)$", card, re.MULTILINE)[0].replace("PATHS", "photo.jpg")
    assert CliRunner().invoke(cli, command.split()).exit_code == 0
