"""`--udf-…-max-…`: the operator's caps, as flags of `up`, `worker` and `gateway` and as environment variables."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from streams.wasm.caps import CAPS, DEFAULT_CAPS, parse_cap


def with_udf_caps(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for each cap. What is given goes into this process's environment (`caps_from_env`), and so
    into that of every process it starts."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        for cap in CAPS:
            text = given.pop(cap.parameter, None)
            if text is not None:
                parse_cap(cap, text)
                os.environ[cap.variable] = text
        return command(**given)

    own = inspect.signature(command, eval_str=True)
    flags = []
    for cap in CAPS:
        default = getattr(DEFAULT_CAPS, cap.limit)
        says = "none" if default is None else f"{default:,}"
        option = typer.Option(cap.flag, help=f"{cap.help} Default: {says}.", metavar="NUMBER")
        annotation = Annotated[str | None, option]
        flags.append(
            inspect.Parameter(cap.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    parameters = [*own.parameters.values(), *flags]
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped
