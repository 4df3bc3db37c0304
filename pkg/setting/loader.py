"""Reads the settings from the file, then from the environment, which wins.

A setting is known by its section and key; `Origin` remembers which of the two places a text came
from, so that a message names the place that the user has to change.
"""

from __future__ import annotations

import configparser
import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pkg.setting.schema import (
    PUBLISHED_SECRETS,
    App,
    Database,
    Server,
    Settings,
    SettingsError,
)

DEFAULT_FILE = "conf/app.ini"
SECTIONS: dict[str, Any] = {"app": App, "server": Server, "database": Database}

_MYSQL_NEEDS = (("database", "USER"), ("database", "HOST"))

# RUN_MODE stands above the first section, where configparser allows no key: it reads the file
# with this header put in front.
_TOP = "above the first section"

# A Kubernetes service called blog, or blog-server, puts these into the environment. PORT alone
# could be a setting too: a link's has the form tcp://10.0.0.1:80.
_SERVICE_LINK = re.compile(r"BLOG_(\w+_)?(SERVICE_(HOST|PORT)|PORT(_\d+_(TCP|UDP|SCTP)))(_\w+)?")
_LINK_NAME = re.compile(r"BLOG_(\w+_)?PORT")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


@dataclasses.dataclass(frozen=True)
class Key:
    section: str
    field: dataclasses.Field[Any]

    @property
    def name(self) -> str:
        return self.field.name.upper()

    @property
    def variable(self) -> str:
        return "_".join(filter(None, ["BLOG", self.section.upper(), self.name]))


@dataclasses.dataclass(frozen=True)
class Origin:
    text: str
    place: str


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process; raises SettingsError when they are not sound."""
    keys = list(_keys())
    environ = {name: environ[name] for name in environ if not _is_service_link(name, environ[name])}
    _refuse_unknown_variables(environ, [key.variable for key in keys])
    path = environ.get("BLOG_CONF", DEFAULT_FILE)
    if not path:
        raise SettingsError("BLOG_CONF: expected the name of a file")
    texts = _read_file(path, keys)
    for key in keys:
        if key.variable in environ:
            texts[key.section, key.name] = Origin(environ[key.variable], key.variable)
    values: dict[str, dict[str, Any]] = {section: {} for section in ["", *SECTIONS]}
    for key in keys:
        origin = texts.get((key.section, key.name))
        if origin:
            values[key.section][key.field.name] = _value(key, origin)
        elif key.field.default is dataclasses.MISSING:
            raise _missing(path, key)
    sections = {name: cls(**values[name]) for name, cls in SECTIONS.items()}
    settings = Settings(**values[""], **sections)
    _check_together(settings, texts, path, keys)
    return settings


def _keys() -> Iterator[Key]:
    for section, cls in {"": Settings, **SECTIONS}.items():
        for field in dataclasses.fields(cls):
            if "rule" in field.metadata:
                yield Key(section, field)


def _is_service_link(name: str, value: str) -> bool:
    if _LINK_NAME.fullmatch(name):
        return bool(_LINK_VALUE.fullmatch(value))
    return bool(_SERVICE_LINK.fullmatch(name))


def _missing(path: str, key: Key, reason: str = "") -> SettingsError:
    expected = key.field.metadata["rule"].expected
    return SettingsError(
        f"{path}: {_where(key.section, key.name)}: missing key, expected {expected}{reason}"
    )


def _where(section: str, key: str) -> str:
    return f"[{section}] {key}" if section else f"{key} {_TOP}"


def _read_file(path: str, keys: list[Key]) -> dict[tuple[str, str], Origin]:
    parser = _parse(path)
    known = {(key.section, key.name) for key in keys}
    texts = {}
    for header in parser.sections():
        section = "" if header == _TOP else header
        if section and section not in SECTIONS:
            expected = ", ".join(SECTIONS)
            raise SettingsError(f"{path}: [{section}]: unknown section, expected one of {expected}")
        for name, text in parser.items(header):
            place = f"{path}: {_where(section, name)}"
            if (section, name) not in known:
                expected = ", ".join(key.name for key in keys if key.section == section)
                raise SettingsError(f"{place}: unknown key, expected one of {expected}")
            texts[section, name] = Origin(text, place)
    return texts


def _parse(path: str) -> configparser.ConfigParser:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        line = len((err.object[: err.start] + b".").splitlines())
        raise SettingsError(f"{path}: line {line}: expected UTF-8 text: {err.reason}") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise SettingsError(f"{path}: cannot read the settings: {reason}") from err
    # Indented lines would continue the value above them; here each line stands for itself.
    lines = [f"[{_TOP}]", *(line.strip() for line in text.split("\n"))]
    parser = configparser.ConfigParser(
        interpolation=None, default_section="\n", comment_prefixes=("#", ";"), delimiters=("=", ":")
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_file(lines, source=path)
    except configparser.DuplicateOptionError as err:
        section = "" if err.section == _TOP else err.section
        place = f"{path}: line {(err.lineno or 1) - 1}: {_where(section, err.option)}"
        raise SettingsError(f"{place}: given twice, expected once") from err
    except configparser.DuplicateSectionError as err:
        place = f"{path}: line {(err.lineno or 1) - 1}: [{err.section}]"
        raise SettingsError(f"{place}: section given twice, expected once") from err
    except configparser.ParsingError as err:
        line = err.errors[0][0] - 1
        raise SettingsError(f"{path}: line {line}: expected [section] or KEY = value") from err
    return parser


def _value(key: Key, origin: Origin) -> Any:
    try:
        return key.field.metadata["rule"](origin.text)
    except ValueError as err:
        found = "" if key.field.metadata["secret"] else f", not {origin.text!r}"
        raise SettingsError(f"{origin.place}: expected {err}{found}") from err


def _check_together(
    settings: Settings, texts: Mapping[tuple[str, str], Origin], path: str, keys: list[Key]
) -> None:
    if settings.database.type == "mysql":
        for key in keys:
            name = (key.section, key.name)
            if name in _MYSQL_NEEDS and name not in texts:
                raise _missing(path, key, ": TYPE mysql needs it")
    if settings.run_mode == "release" and settings.app.jwt_secret in PUBLISHED_SECRETS:
        place = texts["app", "JWT_SECRET"].place
        raise SettingsError(
            f"{place}: expected a secret of your own in release mode, this one is published"
        )


def _refuse_unknown_variables(environ: Mapping[str, str], known: list[str]) -> None:
    """A misspelt variable would be ignored in silence; a stranger's is none of our business."""
    for name in sorted(environ):
        if not name.startswith("BLOG_") or name in (*known, "BLOG_CONF"):
            continue
        near = difflib.get_close_matches(name, [*known, "BLOG_CONF"], n=1, cutoff=0.8)
        if name == "BLOG_PORT":
            near = ["BLOG_SERVER_HTTP_PORT"]
        ours = name.startswith(tuple(f"BLOG_{section.upper()}_" for section in SECTIONS))
        if near or ours:
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise SettingsError(f"{name}: unknown environment variable, {hint}")
