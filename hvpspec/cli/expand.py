"""Commands whose parameters are dataclasses of options: Typer is shown an option for each field."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_type_hints

from hvpspec.cli.console import Screen, screen_for
from hvpspec.cli.ends import ended
from hvpspec.cli.options.flags import AsJson, Quiet, flag_name
from hvpspec.errors import InputError
from hvpspec.system.stops import stopped_by

Command = Callable[..., None]


def expanded(*, without: Sequence[str] = (), instead: str = "", **defaults: Any) -> Callable[[Command], Command]:
    """A command whose dataclass parameters (`Source`, `Options`) stand for their fields.

    A parameter of type `Screen` is not an option: the command is given one. Every command gets --json and --quiet.
    without: fields that this command refuses, as it has no use for them; instead: what to do then. defaults: those of
    fields that differ for this command.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}
        screens = [name for name, kind in kinds.items() if kind is Screen]
        shown = _shown(signature, groups, screens, without, defaults)

        def run(*, as_json: bool, quiet: bool, **given: Any) -> None:
            for name in without:
                if given[name] not in (shown[name].default, []):
                    raise InputError(f"{command.__name__} has no {flag_name(name)}; {instead}.")
            for name, group in groups.items():
                given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            with screen_for(as_json=as_json, quiet=quiet) as screen:
                try:
                    command(**given, **dict.fromkeys(screens, screen))
                except KeyboardInterrupt as stop:
                    screen.error(f"{stopped_by(stop)}.")
                    raise ended(stop) from None

        run.__name__ = command.__name__
        run.__doc__ = command.__doc__
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown.values()]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _shown(
    signature: inspect.Signature,
    groups: dict[str, Any],
    screens: Sequence[str],
    without: Sequence[str],
    defaults: dict[str, Any],
) -> dict[str, inspect.Parameter]:
    """The parameters that Typer makes options of, by name."""
    shown: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if name in groups:
            shown |= _fields(groups[name])
        elif name not in screens:
            shown[name] = parameter
    for name, kind in (("as_json", AsJson), ("quiet", Quiet)):
        shown[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
    for name, default in defaults.items():
        shown[name] = shown[name].replace(default=default)
    for name in without:
        shown[name] = shown[name].replace(annotation=_hidden(shown[name].annotation))
    return shown


def _fields(group: Any) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    }


def _hidden(annotation: Any) -> Any:
    """The same annotated type, with an option that --help does not show."""
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.hidden = True
    return Annotated[kind, option]
