"""How a version is tried on live requests before it answers all of them."""

from typing import Annotated

import typer

from daemon.commands.options import DEFAULT_CONFIG, ConfigPath, Json, Reason, do
from daemon.core.errors import UsageError
from daemon.settings.units import parse_share

OFF = "off"

VersionOrOff = Annotated[str, typer.Argument(metavar="VERSION|off", help="A version's number, or off to end it.")]

app = typer.Typer()


@app.command()
def canary(
    version: VersionOrOff,
    share: Annotated[str, typer.Option(help="Its share of the requests, at most 50%.")] = "5%",
    path: ConfigPath = DEFAULT_CONFIG,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Let a version answer a small share of the requests; the champion answers the others."""
    number = _number(version)
    done = f"version {number} answers {share} of the requests" if number else "the champion answers every request"
    do(path, "/v1/canary", as_json, done, version=number or OFF, share=_share(share), reason=reason)


@app.command()
def shadow(
    version: VersionOrOff, path: ConfigPath = DEFAULT_CONFIG, reason: Reason = "", as_json: Json = False
) -> None:
    """Compare a version with the champion on live requests; its answers are never sent."""
    number = _number(version)
    done = f"version {number} is compared with the champion, unheard" if number else "nothing is compared any more"
    do(path, "/v1/shadow", as_json, done, version=number or OFF, reason=reason)


def _number(version: str) -> int | None:
    """None: off."""
    if version == OFF:
        return None
    if not version.isascii() or not version.isdigit() or int(version) == 0:
        raise UsageError(f"say a version's number, or {OFF}; got '{version}'")
    return int(version)


def _share(share: str) -> float:
    try:
        return parse_share(share)
    except ValueError as error:
        raise UsageError(f"--share: {error}") from error
