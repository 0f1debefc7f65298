"""Commands whose parameters are dataclasses of options: Typer is shown an option for each field."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import typer

from hvpspec.cli.console import INTERRUPTED, Screen, screen_for
from hvpspec.cli.options import AsJson, Quiet

Command = Callable[..., None]


def expanded(*, hidden: Sequence[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """A command whose dataclass parameters (`Source`, `Options`) stand for their fields.

    A parameter of type `Screen` is not an option: the command is given one. Every command gets --json and --quiet.
    hidden: options that --help leaves out, as this command has no use for them. defaults: where this command's differ.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        given = signature.parameters.values()
        groups: dict[str, Any] = {
            member.name: member.annotation for member in given if dataclasses.is_dataclass(member.annotation)
        }
        screens = [member.name for member in given if member.annotation is Screen]
        shown: dict[str, inspect.Parameter] = {}
        for member in given:
            if member.name not in screens:
                fields = _fields(groups[member.name]) if member.name in groups else [member]
                shown |= {field.name: field for field in fields}
        for name, kind in (("as_json", AsJson), ("quiet", Quiet)):
            shown[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, default in defaults.items():
            shown[name] = shown[name].replace(default=default)
        for name in hidden:
            shown[name] = shown[name].replace(annotation=_hidden(shown[name].annotation))

        def run(*, as_json: bool, quiet: bool, **values: Any) -> None:
            with screen_for(as_json=as_json, quiet=quiet) as screen:
                for name, group in groups.items():
                    values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
                try:
                    command(**values, **dict.fromkeys(screens, screen))
                except KeyboardInterrupt:
                    screen.error("interrupted.")
                    raise typer.Exit(INTERRUPTED) from None

        run.__name__ = command.__name__
        run.__doc__ = command.__doc__
        parameters = [member.replace(kind=inspect.Parameter.KEYWORD_ONLY) for member in shown.values()]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _hidden(annotation: Any) -> Any:
    """The same annotated type, with an option that --help does not show."""
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.hidden = True
    return Annotated[kind, option]
