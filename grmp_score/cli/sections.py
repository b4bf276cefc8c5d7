"""``--help`` for commands with many options: under headings, as in a manual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click


def sectioned(sections: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """A class of commands whose help groups options.

    Args:
        sections: heading -> names of parameters; what is not named comes under "Other options", at the end.
    """

    class Sectioned(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            named = {name for names in sections.values() for name in names}
            params = {param.name: param for param in self.get_params(ctx) if isinstance(param, click.Option)}
            rest = [name for name in params if name not in named]
            for title, names in {**sections, "Other options": rest}.items():
                records = [params[name].get_help_record(ctx) for name in names]
                rows = [record for record in records if record is not None]
                if rows:
                    with formatter.section(title):
                        formatter.write_dl(rows)

    return Sectioned
