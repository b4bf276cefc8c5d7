"""``grmp-score info [MODEL]``"""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("model", required=False)
@click.option("--revision", default=None, help="Branch, tag or commit of the Hub repository.")
@click.option("--json", "as_json", is_flag=True, help="The whole configuration as JSON.")
def command(model: str | None, revision: str | None, as_json: bool) -> None:
    """Show what a set of weights is: backbone, preprocessing, training, measured results.

    MODEL is a weights folder, a Hub repository (owner/name) or a bundled model (default: mini).
    """
    from grmp_score import weights

    loaded = weights.load(model, revision=revision)
    config = loaded.config
    if as_json:
        click.echo(config.to_json(), nl=False)
        return
    p, prompts, vision = config.preprocess, config.prompts, config.backbone.model_cfg.get("vision_cfg", {})
    resize = {
        "none": "none",
        "shorter": f"shorter side down to {p.size}",
        "exact": f"exactly {p.size}x{p.size}",
    }
    adapter = sum(t.numel() for t in loaded.adapter.values())
    base = sum(t.numel() for t in loaded.backbone_state().values())
    lines = {
        "name": config.name,
        "backbone": f"{config.backbone.name}, {vision.get('layers')} image blocks, {base / 1e6:.1f} M parameters",
        "adapter": f"{adapter / 1e6:.2f} M parameters, {prompts.n_ctx} text and {prompts.n_visual} visual prompts",
        "patches": f"{p.patches} of {p.patch_size}x{p.patch_size}, layout {p.layout}, scales {p.scales}",
        "resize": resize[p.resize],
        "normalised": f"mean {p.mean}, std {p.std}",
        "label scale": "none (p(high) only)" if config.label_scale is None else str(config.label_scale),
        "checksum": f"backbone sha256 {(config.backbone.sha256 or 'not recorded')[:16]}",
    }
    for name, text in lines.items():
        click.echo(f"{name:>12}  {text}")
    for title, content in (("training", config.training), ("results", config.results)):
        for key, value in content.items():
            click.echo(f"{title:>12}  {key}: {value if isinstance(value, str) else json.dumps(value)}")
            title = ""
