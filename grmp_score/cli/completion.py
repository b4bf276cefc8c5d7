"""``grmp-score completion SHELL``, and what the TAB key offers where the name of a command may be left out."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

PROGRAM, VARIABLE = "grmp-score", "_GRMP_SCORE_COMPLETE"

#: Bash can complete either files or words of a program's choice; the first word here may be both.  So the files are
#: listed by bash itself, next to the words.
BASH = r"""_grmp_score_completion() {
    local line kind word=${COMP_WORDS[COMP_CWORD]} words="${COMP_WORDS[*]}"
    COMPREPLY=()
    while IFS= read -r line; do
        kind=${line%%,*}
        case $kind in
            plain) COMPREPLY+=("${line#*,}") ;;
            file|dir)
                compopt -o filenames
                local -a flags=(-f)
                [[ $kind == dir ]] && flags=(-d)
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "${flags[@]}" -- "$word")
                ;;
        esac
    done < <(COMP_WORDS=$words COMP_CWORD=$COMP_CWORD _GRMP_SCORE_COMPLETE=bash_complete "$1" 2>/dev/null)
    # Nothing found: bash's own way, which knows words that begin with a quote.
    [[ ${#COMPREPLY[@]} -gt 0 ]] || compopt -o default
}
complete -F _grmp_score_completion grmp-score
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes the TAB key complete commands, options, values and file names.

    \b
    Put one of these where your shell reads it:
      ~/.bashrc                     eval "$(grmp-score completion bash)"
      ~/.zshrc (after compinit)     eval "$(grmp-score completion zsh)"
      ~/.config/fish/config.fish    grmp-score completion fish | source

    \b
    Examples:
      grmp-score completion bash
      grmp-score completion zsh > _grmp-score
      grmp-score completion fish > grmp-score.fish
    """
    click.echo(script(shell), nl=False)


def script(shell: str) -> str:
    """The text that the shell is to read."""
    from click.shell_completion import get_completion_class

    from grmp_score.cli.main import cli

    if shell == "bash":
        return BASH
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(cli, {}, PROGRAM, VARIABLE).source().rstrip() + "\n"


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Bundled models, and the folders of this disk."""
    bundled = Path(__file__).parents[1] / "bundled"
    names = sorted(p.name for p in bundled.iterdir() if p.name.startswith(incomplete) and p.is_dir())
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="dir")]
