"""From `module:app` to the application.

Owns the words with which a command names an application: `module:app`, `module:pkg.app`,
`module:create_app()`, `module:create_app("x", debug=True)`, and `module` alone, which means
`module:app` and then `module:application`.

Rules: what the words get wrong is a `LoadError` of one line, which says what is there instead.
What the user's own code raises is the user's, and passes through with its traceback. Nothing is
evaluated: a name is looked up, and arguments are literals.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import types
import typing as t

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

FORMS = "module:app, module:create_app() or module"
DEFAULT_NAMES = ("app", "application")
FACTORY_NAMES = ("create_app", "make_app")
# How many of the names that are there an error lists.
MOST_NAMES = 8

_is_loading = False


class LoadError(Exception):
    """The text names no application."""


class _Call(t.NamedTuple):
    """The arguments of `module:create_app("x", debug=True)`."""

    args: list[object]
    kwargs: dict[str, object]


def is_loading() -> bool:
    """Is an application being imported or made, by a command that is to serve it then?"""
    return _is_loading


def load(text: str) -> WSGIApplication:
    """Import the application that the text names.

    :raises LoadError: there is none, or it is none.
    """
    global _is_loading
    _is_loading = True
    try:
        return _load(text)
    finally:
        _is_loading = False


def _load(text: str) -> WSGIApplication:
    module_name, colon, expression = text.partition(":")
    if not module_name or (colon and not expression.strip()):
        raise LoadError(f"{text!r}: expected {FORMS}")
    # The text is read before the import: what is wrong with it needs no waiting.
    names, call = _parse(text, expression.strip()) if colon else ([], None)
    module = _import(module_name)
    names = names or [_default_name(module)]
    value = _find(module, names)
    label = f"{module_name}:{'.'.join(names)}"
    if call is None:
        _refuse_factory(value, names[-1], label)
    else:
        value = _called(value, label, call)
        label += "()"
    if not callable(value):
        raise LoadError(f"{label} is no WSGI application but {_describe(value)}")
    return t.cast("WSGIApplication", value)


# The text.


def _parse(text: str, expression: str) -> tuple[list[str], _Call | None]:
    """The dotted names after the colon, and the arguments if they are to be called."""
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise LoadError(f"{text!r}: {expression!r} is no name; expected {FORMS}") from None
    call = None
    if isinstance(node, ast.Call):
        call = _arguments(text, node)
        node = node.func
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise LoadError(f"{text!r}: {expression!r} is no name; expected {FORMS}")
    return [node.id, *names], call


def _arguments(text: str, node: ast.Call) -> _Call:
    kwargs: dict[str, object] = {}
    try:
        args = [ast.literal_eval(value) for value in node.args]
        for word in node.keywords:
            if word.arg is None:
                raise ValueError("** is no literal")
            kwargs[word.arg] = ast.literal_eval(word.value)
    except (TypeError, ValueError):
        raise LoadError(
            f"{text!r}: arguments must be literals, such as 'x', 1, True, None or ['a']"
        ) from None
    return _Call(args, kwargs)


# The module.


def _import(name: str) -> types.ModuleType:
    if name.endswith(".py") or os.sep in name:
        dotted = os.path.relpath(name).removesuffix(".py").replace(os.sep, ".")
        here = f"such as {dotted!r}" if _is_dotted(dotted) else "below the current directory"
        raise LoadError(f"{name!r} is a file; expected the name of a module, {here}")
    if not _is_dotted(name):
        raise LoadError(f"{name!r} is no name of a module; expected {FORMS}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{name}.".startswith(f"{missing}.") and not _comes_from_user(error):
            raise LoadError(_missing_module(name, missing)) from None
        raise


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _comes_from_user(error: BaseException) -> bool:
    """Did a module's own code raise it, and not the search for that module?"""
    trace = error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        if name != __name__ and name.partition(".")[0] != "importlib":
            return True
        trace = trace.tb_next
    return False


def _missing_module(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    if not parent:
        here = os.getcwd()
        what = f"no module named {missing!r} in {here} or on Python's path"
        return _not_there(what, missing, _modules_in([here]))
    places = getattr(sys.modules[parent], "__path__", None)
    if places is None:
        return (
            f"no module named {name!r}: {parent!r} is no package; did you mean '{parent}:{last}'?"
        )
    return _not_there(f"{parent!r} has no module {last!r}", last, _modules_in(places))


def _modules_in(places: t.Iterable[str]) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(places)]


# The attribute.


def _default_name(module: types.ModuleType) -> str:
    for name in DEFAULT_NAMES:
        if hasattr(module, name):
            return name
    for name in FACTORY_NAMES:
        if hasattr(module, name):
            raise LoadError(
                f"module {module.__name__!r} has neither 'app' nor 'application'; "
                f"did you mean '{module.__name__}:{name}()'?"
            )
    what = f"module {module.__name__!r} has neither 'app' nor 'application'"
    names = _public_names(module)
    likely = [name for name in names if _may_be_app(getattr(module, name), module)]
    if len(likely) == 1:
        raise LoadError(f"{what}; did you mean '{module.__name__}:{likely[0]}'?")
    raise LoadError(_not_there(what, "app", names, f"{module.__name__}:"))


def _may_be_app(value: object, module: types.ModuleType) -> bool:
    """Does it take environ and start_response, and is no function of another module?"""
    if not callable(value):
        return False
    if inspect.isroutine(value):
        signature = _signature(value) if value.__module__ == module.__name__ else None
        return signature is not None and _misfit(signature, {}, None) is None
    # By its type: a proxy answers for another object, which may not be there.
    signature = _signature(type(value).__call__)
    return signature is not None and _misfit(signature, value, {}, None) is None


def _find(module: types.ModuleType, names: list[str]) -> t.Any:
    value: t.Any = module
    label = f"module {module.__name__!r}"
    for name in names:
        try:
            value = getattr(value, name)
        except AttributeError:
            what = f"{label} has no attribute {name!r}"
            raise LoadError(_not_there(what, name, _public_names(value))) from None
        label = f"{name!r} of {label}"
    return value


def _public_names(value: object) -> list[str]:
    """What could have been meant: no modules and no classes, which are mostly imports."""
    # type() and not isinstance(): a proxy such as Flask's `request` answers for another object.
    kinds = (types.ModuleType, type)
    return [
        name
        for name, item in getattr(value, "__dict__", {}).items()
        if not name.startswith("_") and not issubclass(type(item), kinds)
    ]


def _not_there(what: str, name: str, there: list[str], before: str = "") -> str:
    """
    :param before: what the user writes before one of them.
    """
    close = difflib.get_close_matches(name, there, 1)
    if close:
        return f"{what}; did you mean '{before}{close[0]}'?"
    if not there:
        return what
    more = ", ..." if len(there) > MOST_NAMES else ""
    return f"{what}; found: {', '.join(there[:MOST_NAMES])}{more}"


# The application.


def _refuse_factory(value: t.Any, name: str, label: str) -> None:
    """Refuse a function that makes the application, named without being called."""
    if not inspect.isroutine(value) or (signature := _signature(value)) is None:
        return
    is_app = _misfit(signature, {}, None) is None
    if _misfit(signature) is None and (name in FACTORY_NAMES or not is_app):
        raise LoadError(f"{label} is a function that makes the application; add (): '{label}()'")
    if not is_app:
        raise LoadError(
            f"{label}{signature} is no WSGI application, which takes environ and start_response; "
            f"if it makes the application, give it its arguments: '{label}(...)'"
        )


def _called(value: t.Any, label: str, call: _Call) -> t.Any:
    if not callable(value):
        raise LoadError(f"{label} can't be called; it is {_describe(value)}")
    signature = _signature(value)
    misfit = signature and _misfit(signature, *call.args, **call.kwargs)
    if misfit is not None:
        is_app = signature and _misfit(signature, {}, None) is None
        hint = f"; did you mean {label!r}?" if is_app else ""
        raise LoadError(f"{label}{signature} can't be called so: {misfit}{hint}")
    return value(*call.args, **call.kwargs)


def _signature(value: t.Callable[..., object]) -> inspect.Signature | None:
    try:
        return inspect.signature(value)
    except (TypeError, ValueError):
        # Some builtins keep theirs to themselves.
        return None


def _misfit(signature: inspect.Signature, *args: object, **kwargs: object) -> TypeError | None:
    """Why these arguments don't fit, None when they do."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return error
    return None


def _describe(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else type(value).__name__
