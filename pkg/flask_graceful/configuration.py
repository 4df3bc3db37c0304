"""What a Flask application says of how it is to be served: `app.config`, and options in code.

Owns the keys `GRACEFUL_*`: one for each setting, from the table in `settings`, and those of the
extension itself; which of several sources counts; and the table of them for the documents.

Rules: what stands nearer to the start counts: arguments of `run`, then those of `Graceful`, then
`app.config`, then the default. A key that nobody knows raises, with the one that it may have been.
Values of `app.config` may be words, as the environment has them: `Flask.config.from_prefixed_env`
leaves `off` a text.
"""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import dataclass, field, fields

from . import settings
from .listeners import parse_addresses
from .settings import PATH, SWITCH, Settings

PREFIX = "GRACEFUL_"
ADDRESS = "address"
URL_PATH = "URL path"
TEXT = "text"
# FLASK_GRACEFUL_POLLER is the server's own, and from_prefixed_env takes it for a key of the app's.
_NOT_OURS = {"poller"}
# FLASK_GRACEFUL_RUN_PORT is a flag of `flask graceful run`, and a key of `from_prefixed_env`.
_FLAGS = "run_"
# What does nothing without another one.
_NEEDS = {"status_token": "status_page", "readyz_during_delay": "readyz"}


def _option(default: t.Any, unit: str, text: str, help: str) -> t.Any:
    return field(default=default, metadata={"unit": unit, "text": text, "help": help})


@dataclass(frozen=True)
class Options:
    """What an application can say besides the settings of its server. An empty path is off.

    :raises TypeError: a value is of a wrong type; ValueError: it can't be used.
    """

    bind: str | tuple[str, ...] = _option(
        "",
        ADDRESS,
        "127.0.0.1:5000",
        "address, or a list of them; host and port of run() come first",
    )
    certfile: str = _option("", PATH, "off", "certificate (PEM): serve HTTPS")
    keyfile: str = _option("", PATH, "off", "private key of the certificate (PEM)")
    livez: str = _option("", URL_PATH, "off", "200 as long as the process answers; True: /livez")
    readyz: str = _option(
        "", URL_PATH, "off", "200 when requests are welcome, else 503; True: /readyz"
    )
    readyz_during_delay: bool = _option(
        False, SWITCH, "off", "say 200 there during shutdown_delay too, until no more is accepted"
    )
    metrics: str = _option(
        "", URL_PATH, "off", "for Prometheus, by prometheus_client; True: /metrics"
    )
    status_page: bool = _option(
        False, SWITCH, "off", "the status page, /graceful/; seen in debug mode or with the token"
    )
    status_token: str = _option(
        "", TEXT, "off", "opens the status page outside of debug mode: /graceful/?token=..."
    )

    def __post_init__(self) -> None:
        for row in fields(self):
            value = _checked(row.name, row.metadata["unit"], getattr(self, row.name))
            object.__setattr__(self, row.name, value)
        taken = [path for path in (self.livez, self.readyz, self.metrics) if path]
        for path in taken:
            if taken.count(path) > 1:
                raise ValueError(f"{path!r} is given for two of livez, readyz and metrics")
        if self.keyfile and not self.certfile:
            raise ValueError("keyfile is given without certfile")


class Configuration(t.NamedTuple):
    """All that is known of how to serve an application.

    :param settings: those that were given, checked; for `GracefulServer`.
    """

    options: Options
    settings: dict[str, t.Any]


def configuration(config: t.Mapping[str, t.Any], *given: t.Mapping[str, t.Any]) -> Configuration:
    """What counts.

    :param config: the application's; other keys than ours may be in it.
    :param given: options by their names, each mapping before those that precede it.
    :raises TypeError: an option is unknown or of a wrong type; ValueError: it is out of range.
    """
    chosen = _from_config(config)
    for more in given:
        _check_names(more)
        chosen.update(more)
    for name, needed in _NEEDS.items():
        # Who has switched that off in so many words may leave this where it is.
        if chosen.get(name) and needed not in chosen:
            raise ValueError(f"{name} does nothing without {needed}: set {key_of(needed)} too")
    own = {row.name for row in fields(Options)}
    options = Options(**{name: value for name, value in chosen.items() if name in own})
    others = {name: value for name, value in chosen.items() if name not in own}
    Settings(**others)
    return Configuration(options, others)


def check_options(options: t.Mapping[str, t.Any]) -> None:
    """Look at each option for itself: another one that it needs may stand in `app.config`.

    :raises TypeError: an option is unknown or of a wrong type; ValueError: it is out of range.
    """
    _check_names(options)
    for name, value in options.items():
        _checked_alone(name, value)


def markdown_rows() -> t.Iterator[str]:
    """The table of configuration keys as the lines of a markdown table."""
    yield "| key | default | unit | |"
    yield "|---|---|---|---|"
    for row in fields(Options):
        about = row.metadata
        yield f"| `{key_of(row.name)}` | {about['text']} | {about['unit']} | {about['help']} |"
    for one in settings.rows():
        yield f"| `{key_of(one.name)}` | {one.default} | {one.unit} | {one.help} |"


def key_of(name: str) -> str:
    """That of an option, in `app.config`."""
    return PREFIX + name.upper()


def _names() -> list[str]:
    return [row.name for row in (*fields(Options), *fields(Settings))]


def _from_config(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    names = {key_of(name): name for name in _names()}
    ours = [key for key in config if key.startswith(PREFIX)]
    chosen: dict[str, t.Any] = {}
    for key in ours:
        name = names.get(key)
        if name is not None:
            chosen[name] = _read(key, name, config[key])
            continue
        word = key.removeprefix(PREFIX).lower()
        if not _is_others(word):
            raise TypeError(f"unknown key {key!r} in app.config; {_hint(word, key_of)}")
    return chosen


def _is_others(name: str) -> bool:
    return name in _NOT_OURS or name.startswith(_FLAGS)


def _check_names(options: t.Mapping[str, t.Any]) -> None:
    names = _names()
    for name in options:
        if name not in names:
            raise TypeError(f"unknown option {name!r}; {_hint(name, str)}")


def _hint(word: str, spelt: t.Callable[[str], str]) -> str:
    """What may have been meant.

    :param word: without what all keys begin with; in that they are all alike.
    :param spelt: an option as it is written there.
    """
    if word in ("host", "port"):
        return f"did you mean {spelt('bind')!r}, or host= and port= of run()?"
    known = _names()
    close = difflib.get_close_matches(word, known, 1)
    if close:
        return f"did you mean {spelt(close[0])!r}?"
    return f"known: {', '.join(map(spelt, known))}"


def _read(key: str, name: str, value: t.Any) -> t.Any:
    """A value of app.config, checked where its key is known."""
    own = {row.name: row.metadata["unit"] for row in fields(Options)}
    try:
        if name in own:
            if own[name] in (SWITCH, URL_PATH):
                value = settings.switch_from_text(value)
            elif own[name] == TEXT and type(value) is int:
                # from_prefixed_env makes numbers of digits.
                value = str(value)
        elif isinstance(value, str):
            return settings.from_text(name, value)
        return _checked_alone(name, value)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise type(error)(f"{key} in app.config: {text}") from None


def _checked_alone(name: str, value: t.Any) -> t.Any:
    for row in fields(Options):
        if row.name == name:
            return _checked(name, row.metadata["unit"], value)
    return getattr(Settings(**{name: value}), name)


def _checked(name: str, unit: str, value: t.Any) -> t.Any:
    if unit == ADDRESS:
        return _checked_addresses(name, value)
    if unit == URL_PATH:
        return _checked_url_path(name, value)
    if unit == TEXT:
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected a text, got {type(value).__name__}")
        return value
    return settings.checked(name, unit, value)


def _checked_addresses(name: str, value: t.Any) -> str | tuple[str, ...]:
    if value is None or value == "":
        return ""
    try:
        parse_addresses(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return value if isinstance(value, str) else tuple(value)


def _checked_url_path(name: str, value: t.Any) -> str:
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return f"/{name}"
    if not isinstance(value, str) or not value.startswith("/"):
        raise TypeError(f"{name}: expected True, False or a path such as '/{name}', got {value!r}")
    return value
