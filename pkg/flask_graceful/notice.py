"""What a browser shows as long as new code does not come to serve: that, and why.

Owns the notice in the pages of the old code, and the page of the failure alone.

Strategy: the old code answers as it did. Whoever looks at a page of it in a browser finds the
notice in a corner, the traceback in it, and the page loads itself anew when there is newer code.
It asks this module for that, and believes no other answer: a proxy may have sent it elsewhere.

Rules: only a page that a browser is to show is touched: what scripts and programs ask for is as
the application made it. The traceback is for whoever may use the debugger; others learn that there
is one. A page with a notice is not to be kept, since the next one has none, and goes without the
application's Content-Security-Policy, which would not let the notice be.
"""

from __future__ import annotations

import html
import typing as t

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Where the failure stands alone, for programs too.
PATH = "/__graceful__/failure"

_TEXT = """
<div id="graceful-failure" role="alert" lang="en" style="all:initial;position:fixed;left:0;right:0;
bottom:0;z-index:2147483647;max-height:70vh;overflow:auto;box-sizing:border-box;padding:12px 16px;
background:#2b1416;color:#ffe3e3;border-top:3px solid #e5484d;font:14px/1.5 system-ui,sans-serif">
<b>The new code does not start. The old code goes on serving.</b> %s
%s</div>
<script>new ResizeObserver(() => { document.body.style.paddingBottom =
document.getElementById("graceful-failure").offsetHeight + "px" }).observe(
document.getElementById("graceful-failure"))%s</script>
"""
_SAID = """<details open><summary style="cursor:pointer">What it said</summary>
<pre tabindex="0" style="margin:8px 0 0;padding:0;border:0;background:none;color:inherit;
white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,monospace">%s</pre>
</details>"""
# What is said to who may not see more.
_HIDDEN = "The terminal tells why."
_MENDED = "Nothing has failed since the code that answers has started.\n"
# What does not hold for a page with the notice.
_LEFT_OUT = (
    "cache-control",
    "content-security-policy",
    "etag",
    "expires",
    "last-modified",
)
# It stays as it is while the server is not there.
_SCRIPT = """
setInterval(() => fetch("/__graceful__/failure").then(answer => answer.text()).then(
text => { if (text.startsWith("Nothing has failed since")) location.reload() }
).catch(() => {}), 1000)"""

Headers = list[tuple[str, str]]


class Failure(t.NamedTuple):
    """Why new code does not serve.

    :param lines: what it has printed last.
    """

    reason: str
    lines: t.Sequence[str]

    def page(self, is_told: bool) -> str:
        """:param is_told: with the reason?"""
        if not is_told:
            return f"The new code does not start. {_HIDDEN}\n"
        return "\n".join([self.reason, "", *self.lines, ""])

    def notice(self, is_told: bool, is_renewed: bool) -> bytes:
        """
        :param is_told: with the reason?
        :param is_renewed: may the page be loaded again?
        """
        reason, said = _HIDDEN, ""
        if is_told:
            reason = html.escape(self.reason)
            said = _SAID % html.escape("\n".join(self.lines) or "nothing")
        text = _TEXT % (reason, said, _SCRIPT if is_renewed else "")
        return text.encode("utf-8", "replace")


class Notice:
    """The application, with the notice in its pages as long as there is a failure.

    :param is_trusted: may who sends this request see the reason?
    """

    def __init__(
        self, app: WSGIApplication, is_trusted: t.Callable[[WSGIEnvironment], bool]
    ) -> None:
        self._app = app
        self._is_trusted = is_trusted
        self.failure: Failure | None = None

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> t.Iterable[bytes]:
        failure = self.failure
        if environ.get("PATH_INFO") == PATH:
            page = failure and failure.page(self._is_trusted(environ))
            return _answer(page, start_response)
        if failure is None or not _is_navigation(environ):
            return self._app(environ, start_response)
        # Not modified is what the page without it is.
        for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE"):
            environ.pop(name, None)
        notice = failure.notice(self._is_trusted(environ), environ["REQUEST_METHOD"] == "GET")
        added: list[bytes] = []

        def start(status: str, headers: Headers, *rest: t.Any) -> t.Callable[[bytes], object]:
            added[:] = [notice] if _is_page(status, headers) else []
            return start_response(status, _with(headers, len(notice)) if added else headers, *rest)

        return _Extended(self._app(environ, start), added)


class _Extended:
    """The blocks of an answer, and some more."""

    def __init__(self, blocks: t.Iterable[bytes], added: list[bytes]) -> None:
        self._blocks = blocks
        self._added = added

    def __iter__(self) -> t.Iterator[bytes]:
        yield from self._blocks
        # Known when the application has begun its answer, at the latest with its first block.
        yield from self._added

    def close(self) -> None:
        if hasattr(self._blocks, "close"):
            self._blocks.close()


def _answer(page: str | None, start_response: StartResponse) -> list[bytes]:
    status = "404 Not Found" if page is None else "200 OK"
    body = (page or _MENDED).encode("utf-8", "replace")
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    start_response(status, headers)
    return [body]


def _is_navigation(environ: WSGIEnvironment) -> bool:
    """Does a browser ask for a page that it is to show?"""
    is_document = environ.get("HTTP_SEC_FETCH_DEST", "document") == "document"
    accepts = "text/html" in environ.get("HTTP_ACCEPT", "")
    return is_document and accepts and environ["REQUEST_METHOD"] != "HEAD"


def _is_page(status: str, headers: Headers) -> bool:
    """Is it HTML, all of it, and as it is?"""
    fields = {name.lower(): value for name, value in headers}
    is_html = fields.get("content-type", "").partition(";")[0].strip().lower() == "text/html"
    return is_html and "content-encoding" not in fields and status[:3] not in ("204", "206", "304")


def _with(headers: Headers, more: int) -> Headers:
    """The header fields of an answer that is so many bytes longer."""
    changed: Headers = [("Cache-Control", "no-store")]
    for name, value in headers:
        if name.lower() == "content-length":
            changed.append((name, str(int(value) + more)))
        elif name.lower() not in _LEFT_OUT:
            changed.append((name, value))
    return changed
