"""``grmp-score``: scores by default, with named commands next to it."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import platform
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from grmp_score import __version__
from grmp_score.errors import GrmpScoreError

#: Command -> (module under `grmp_score.cli`, one-line help).  Modules are imported when their command runs, so
#: that ``--help`` answers at once.
COMMANDS = {
    "score": ("score", "Score images (the default command)."),
    "report": ("report", "Score images and write one web page about them."),
    "convert": ("convert", "Convert an official GRMP-IQA .pt checkpoint."),
    "export": ("export", "Write a model as an ONNX file for other programs."),
    "info": ("info", "Show what a set of weights is."),
    "download": ("download", "Fetch a model of the Hub for use without a network."),
    "evaluate": ("evaluate", "Measure how well a model agrees with your own labels."),
    "label": ("label", "Rate photos in the browser."),
    "adapt": ("adapt", "Learn what you call good from your own labels."),
    "protocol": ("protocol", "Compare methods on many splits of your labels."),
    "pretrain": ("pretrain", "Stage 1: meta-learn prompts over distortion types."),
    "completion": ("completion", "Print the script that makes the TAB key work."),
}
DEFAULT = "score"


class DefaultGroup(click.Group):
    """A group whose command name may be left out: ``grmp-score photos/`` is ``grmp-score score photos/``.

    A file that is called like a command is scored by ``grmp-score ./adapt``, ``grmp-score -- adapt`` or
    ``grmp-score score adapt``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0] not in own and args[0] not in COMMANDS:
            if args[0].isidentifier() and not os.path.lexists(args[0]):
                for meant in difflib.get_close_matches(args[0], COMMANDS, n=1):
                    raise click.UsageError(f"no command, file or folder {args[0]!r}; did you mean {meant!r}?", ctx)
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"grmp_score.cli.{COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What may come first: a command, or whatever the default command takes."""
        default = self.get_command(ctx, DEFAULT)
        assert default is not None
        words = click.Command.shell_complete(self, ctx, incomplete)  # options of this group
        names = [CompletionItem(n, help=text) for n, (_, text) in COMMANDS.items() if n.startswith(incomplete)]
        with default.make_context(DEFAULT, [], parent=ctx, resilient_parsing=True) as inner:
            offered = {item.value for item in words}
            words += [item for item in default.shell_complete(inner, incomplete) if item.value not in offered]
            paths = next(param for param in default.params if isinstance(param, click.Argument))
            files = paths.shell_complete(inner, incomplete) if not incomplete.startswith("-") else []
        return [*names, *words, *files]

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GrmpScoreError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:
            # The reader of our output (head, less) has gone: nothing is wrong.  What is still buffered must go
            # somewhere, or Python complains when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except OSError as error:  # a full disk, a folder that may not be written to
            raise Failure(str(error)) from error


class Failure(click.ClickException):
    """A user's mistake or an outside failure: one line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"Error: {self.format_message()}", err=True)


#: What scores come from besides this package, and what extras bring, by the names of their distributions.
LIBRARIES = ("torch", "onnxruntime", "onnx", "open_clip_torch", "pillow", "numpy", "safetensors", "huggingface_hub")
OPTIONAL = (
    "pillow-heif",
    "rawpy",
    "tifffile",
    "fsspec",
    "pyarrow",
    "ray",
    "pandas",
    "matplotlib",
    "piq",
)


def version_lines() -> list[str]:
    """Versions of the program, Python, the bundled model and the libraries, without importing any of them."""
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"grmp-score {__version__}", f"Python {platform.python_version()} on {platform.platform(terse=True)}"]
    config = Path(__file__).parents[1] / "bundled" / "mini" / "config.json"
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
        lines.append(f"model {data['name']} (bundled), backbone sha256 {data['backbone']['sha256'][:16]}")
    except (OSError, ValueError, KeyError, TypeError):
        lines.append("the bundled model is missing or damaged")
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in LIBRARIES:
                lines.append(f"{name} is missing")
    return lines


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo("\n".join(version_lines()))
        context.exit()


@click.group(
    cls=DefaultGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Example: grmp-score photos/   (see also: grmp-score score --help)",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of the program, its model and its libraries.",
)
def cli() -> None:
    """How good do these images look?

    grmp-score PATHS... prints a quality score from 0 (bad) to 1 (good) for every image and folder named.
    """


def main() -> None:
    """Entry point of the console script."""
    try:
        status = cli.main(standalone_mode=False)  # click itself would end with 1 on Ctrl-C
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted", err=True)
        status = 130
    sys.exit(status)
