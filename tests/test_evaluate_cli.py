"""`grmp-score evaluate`: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save

from grmp_score.config import Backbone, ModelConfig, Preprocess
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.model.tokenizer import Tokenizer
from grmp_score.scorer import Scorer
from grmp_score.trainer.data.labels import read_labels
from grmp_score.trainer.metrics import srcc

from . import cli_tools
from .cli_tools import MAIN, assert_usage_error
from .conftest import TINY_CLIP, make_photo, patch_tensor, random_weights, randomise
from .hub_server import HubServer
from .warm import Warm

N = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of tiny weights."""
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        preprocess=Preprocess(patch_size=32, patches=2),
        adapted_blocks=2,
    )
    return str(random_weights(config).save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """test.csv of 12 photos by two cameras, in a folder of their own."""
    (tmp_path / "photos").mkdir()
    rows = ["image,mos,camera"]
    for i in range(N):
        make_photo(40, 40, seed=i).save(tmp_path / "photos" / f"{i}.png")
        rows.append(f"photos/{i}.png,{(i * 5) % N + 1},{'old' if i < 9 else 'new'}")
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "test.csv"


#: The command on a screen of 80 columns.
run = partial(cli_tools.run, "evaluate", columns=80)


def run_json(*args: str | Path) -> tuple[dict[str, Any], Result]:
    """The command with JSON, parsed strictly: NaN is no JSON."""
    result = run("--format", "json", *args)
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in the JSON")), result


def test_json_is_what_the_library_finds(model: str, labels: Path) -> None:
    """One object with context, figures, groups and the worst cases."""
    data, result = run_json("--labels", labels, "-m", model, "--by", "camera", "--worst", "3", "--seed", "5")
    assert (result.exit_code, result.stderr) == (0, "")
    known = read_labels(labels)
    predictions = [s.value for s in Scorer.from_pretrained(model).score_many(known.paths)]
    assert data["overall"]["srcc"] == srcc(predictions, known.scores)
    assert (data["model"], data["patches"], data["seed"], data["by"]) == ("tiny", 2, 5, "camera")
    assert data["labels"] == {
        "path": str(labels),
        "images": N,
        "score_column": "mos",
        "minimum": 1.0,
        "maximum": 12.0,
        "higher_is_better": True,
    }
    assert {name: group["n"] for name, group in data["groups"].items()} == {"new": 3, "old": 9}
    assert data["groups"]["new"]["srcc"] is None and data["groups"]["old"]["srcc"] is not None
    assert len(data["worst"]) == 3 and data["unscored"] == [] and data["raters"] is None
    assert data["seconds"] > 0


def test_the_table_says_what_its_numbers_mean(model: str, labels: Path) -> None:
    """In 80 columns: figures with intervals, directions and ranges, groups and worst cases."""
    data, _ = run_json("--labels", labels, "-m", model, "--by", "camera")
    result = run("--labels", labels, "-m", model, "--by", "camera", "--worst", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    text, lines = result.stdout, result.stdout.splitlines()
    assert "\x1b" not in text
    assert max(len(line) for line in lines[1:]) <= 80
    assert "12 of 12 images; mos 1 .. 12, higher is better" in text
    for name in ("srcc", "krcc", "plcc"):
        assert re.search(rf"^{name.upper()} +{data['overall'][name]:.3f}", text, re.MULTILINE)
    assert re.search(rf"^RMSE after logistic +{data['overall']['rmse']:.2f} +in units of mos", text, re.MULTILINE)
    assert re.search(r"^new +3 +- +- +- +- +-$", text, re.MULTILINE)
    assert re.search(rf"^old +9 +{data['groups']['old']['srcc']:.3f} ", text, re.MULTILINE)
    assert "-1 .. 1; 1 is perfect, 0 chance" in text
    worst = lines[next(i for i, line in enumerate(lines) if line.startswith("worst disagreements")) + 1 :]
    assert [line.split()[0] for line in worst[:4]] == [Path(w["path"]).name for w in data["worst"][:4]]
    assert worst[4] == "score: p(high quality), 0 bad .. 1 good; expected: mos by the curve"


def test_output_goes_to_a_file(model: str, labels: Path, tmp_path: Path) -> None:
    """With -o the file holds what the screen would."""
    screen = run("--labels", labels, "-m", model)
    result = run("--labels", labels, "-m", model, "-o", tmp_path / "out.txt")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == screen.stdout


def test_broken_images_are_named_and_the_rest_is_measured(model: str, labels: Path) -> None:
    """Exit code 1, each on a line of stderr with row and reason."""
    (labels.parent / "photos" / "2.png").write_bytes(b"no image")
    (labels.parent / "photos" / "7.png").write_bytes(b"")
    data, result = run_json("--labels", labels, "-m", model)
    assert result.exit_code == 1
    first, second, total = result.stderr.splitlines()
    assert re.fullmatch(r".*test\.csv: row 4: '.*2\.png': not an image, .*", first)
    assert re.fullmatch(r".*test\.csv: row 9: '.*7\.png': the file is empty", second)
    assert total == "2 of 12 images could not be scored"
    assert data["overall"]["n"] == 10 and [u["row"] for u in data["unscored"]] == [4, 9]
    assert "10 of 12 images" in run("--labels", labels, "-m", model).stdout


def test_no_image_can_be_scored(model: str, labels: Path) -> None:
    """Both forms are still written, without a number."""
    for i in range(N):
        (labels.parent / "photos" / f"{i}.png").write_bytes(b"")
    data, result = run_json("--labels", labels, "-m", model, "--by", "camera")
    assert result.exit_code == 1 and data["overall"]["n"] == 0 and data["overall"]["srcc"] is None
    result = run("--labels", labels, "-m", model)
    assert result.exit_code == 1 and re.search(r"^SRCC +- +- ", result.stdout, re.MULTILINE)


def test_dmos_and_named_columns(model: str, labels: Path) -> None:
    """Direction and columns by option; the same labels turned round give the opposite sign."""
    labels.write_text(labels.read_text().replace("image,mos", "photo,stars"))
    columns = ("--image-column", "photo", "--score-column", "stars")
    up, _ = run_json("--labels", labels, "-m", model, *columns)
    down, _ = run_json("--labels", labels, "-m", model, *columns, "--lower-is-better")
    assert up["overall"]["srcc"] == pytest.approx(-down["overall"]["srcc"])
    assert up["labels"]["higher_is_better"] and not down["labels"]["higher_is_better"]
    assert "lower is better" in run("--labels", labels, "-m", model, *columns, "--lower-is-better").stdout
    labels.write_text(labels.read_text().replace("photo,stars", "image,dmos"))
    assert run_json("--labels", labels, "-m", model)[0]["overall"] == down["overall"]
    assert run_json("--labels", labels, "-m", model, "--higher-is-better")[0]["overall"] == up["overall"]


def test_raters_are_the_ceiling(model: str, labels: Path) -> None:
    """Several rows per image: the raters' agreement is printed and in the JSON."""
    rows = [f"photos/{i}.png,r{r},{i + (i * r) % 3}" for i in range(N) for r in range(4)]
    labels.write_text("image,rater,score\n" + "\n".join(rows) + "\n")
    data, _ = run_json("--labels", labels, "-m", model)
    assert data["labels"]["images"] == N and data["raters"]["raters"] == data["raters"]["compared"] == 4
    assert 0.9 < data["raters"]["srcc"] < data["raters"]["ceiling"] <= 1
    text = run("--labels", labels, "-m", model).stdout
    assert "4 raters, 4 ratings per image" in text
    assert f"ceiling: PLCC {data['raters']['ceiling']:.3f}, no scorer can be expected above it" in text
    labels.write_text("image,rater,score\n" + "\n".join(rows[::4] + rows[1:2]) + "\n")
    text = run("--labels", labels, "-m", model).stdout
    assert "2 raters, 1 to 2 ratings per image" in text and "too few ratings for a ceiling" in text


def test_images_folder_and_patches(model: str, labels: Path, tmp_path: Path) -> None:
    """--images is where relative paths start; --patches is used and recorded."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    moved = labels.rename(moved / "test.csv")
    assert_usage_error(run("--labels", moved, "-m", model), r"row 2: no such image file .* \(--images\)$")
    data, result = run_json("--labels", moved, "-m", model, "--images", tmp_path, "--patches", "1")
    assert result.exit_code == 0 and data["patches"] == 1


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        ([], "--labels"),
        (["--labels", "gone.csv"], r"^Error: gone\.csv: no such file"),
        (["--labels", "test.csv", "--by", "lens"], "no column 'lens' to group by; there are: camera"),
        (["--labels", "test.csv", "--score-column", "stars"], "no column 'stars', the header has"),
        (["--labels", "test.csv", "--filename", "a.pt"], "--filename needs --model"),
        (["--labels", "test.csv", "--format", "csv"], "csv"),
        (["--labels", "test.csv", "--worst", "-1"], "--worst"),
        (["--labels", "test.csv", "-m", "no/such/folder"], "no/such/folder: no such folder"),
        (["--labels", "test.csv", "-m", "MODEL", "-o", "gone/out.json"], "cannot write gone/out.json"),
        (["--labels", "nameless.csv"], r"no score column: .* \(--score-column\)$"),
        (["--labels", "two.csv"], r"2 columns could be the image: 'image' and 'file'.* \(--image-column\)$"),
    ],
)
def test_mistakes_are_one_line(
    model: str, labels: Path, args: list[str], pattern: str, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    """Exit code 2, and the remedy is named as it is typed."""
    monkeypatch.chdir(labels.parent)
    Path("nameless.csv").write_text("image,stars\n")
    Path("two.csv").write_text("image,file,mos\n")
    assert_usage_error(run(*[model if a == "MODEL" else a for a in args]), pattern)


def test_as_a_real_process(model: str, labels: Path, warm: Warm) -> None:
    """Valid JSON on stdout, nothing else anywhere."""
    result = warm.run(MAIN, "evaluate", "--labels", labels, "-m", model, "-f", "json")
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["overall"]["n"] == N


# ------------------------------------------------------------------ without training


@pytest.fixture
def open_clip_base(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QualityCLIP:
    """A tiny architecture that open_clip knows as "tiny", its random weights "noise" on the Hub."""
    folder = tmp_path / "architectures"
    folder.mkdir()
    (folder / "tiny.json").write_text(json.dumps(TINY_CLIP))
    for name in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
    open_clip.add_model_config(folder)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"noise": {"hf_hub": "org/tiny-noise/"}})
    net = randomise(QualityCLIP(ModelConfig(name="x", backbone=Backbone(model_cfg=TINY_CLIP), adapted_blocks=2)))
    tensors = {name: tensor.contiguous() for name, tensor in net.clip.state_dict().items()}
    hub.add_repo("org/tiny-noise", {"open_clip_model.safetensors": save(tensors)})
    return net


def p_good(net: QualityCLIP, labels: Path, good: str, bad: str) -> list[float]:
    """CLIP's own zero-shot classification of every image: softmax over the two texts, mean over the patches."""
    texts = Tokenizer(600, 24)([good, bad])
    text = net.text(net.text.embed(texts), texts)
    known, cut = read_labels(labels), Preprocess(patch_size=32, patches=2)
    values = []
    for path in known.paths:
        image = net.image(patch_tensor(Image.open(path).convert("RGB"), cut))
        logits = net.clip.logit_scale.exp() * image @ text.T
        values.append(float(logits.softmax(dim=-1)[:, 0].mean()))
    return values


@torch.no_grad()
@pytest.mark.parametrize("prompts", [(), ("sharp", "a blurry photo.")])
def test_a_base_without_training(open_clip_base: QualityCLIP, labels: Path, prompts: tuple[str, ...]) -> None:
    """open_clip's weights from the Hub, asked with CLIP-IQA's texts or with the ones given, word for word."""
    base = ("--labels", labels, "-m", "tiny:noise", "--patches", "2", "--worst", str(N))
    data, result = run_json(*base, *(("--prompts", *prompts) if prompts else ()))
    assert result.exit_code == 0 and data["model"] == "tiny:noise"
    expected = p_good(open_clip_base, labels, *(prompts or ("Good photo.", "Bad photo.")))
    found = {Path(w["path"]).name: w["score"] for w in data["worst"]}
    assert [found[f"{i}.png"] for i in range(N)] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == N


def test_other_texts_for_a_trained_model(model: str, labels: Path, hub: HubServer) -> None:
    """--prompts takes the place of what was learned; without it that is used."""
    learned, _ = run_json("--labels", labels, "-m", model)
    asked, _ = run_json("--labels", labels, "-m", model, "--prompts", "a good photo", "a bad photo")
    turned, _ = run_json("--labels", labels, "-m", model, "--prompts", "a bad photo", "a good photo")
    assert asked["overall"]["srcc"] == pytest.approx(-turned["overall"]["srcc"])
    assert asked["overall"]["srcc"] != learned["overall"]["srcc"]


def test_texts_and_bases_that_do_not_exist(model: str, labels: Path, hub: HubServer) -> None:
    """One line each."""
    long = " ".join(["good"] * 30)
    assert_usage_error(run("--labels", labels, "-m", model, "--prompts", long, "bad"), "tokens, more than 24")
    base = "ViT-B-16-quickgelu:gone"
    assert_usage_error(
        run("--labels", labels, "-m", base), r"open_clip has no weights 'gone' of 'ViT-B-16-quickgelu'"
    )
