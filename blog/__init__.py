"""The blog: tags, articles and tokens behind a JSON API."""

from __future__ import annotations

from flask import Flask
from flask_graceful.statuspage import create_blueprint

from blog import context, database, failure
from blog.application import Application
from pkg.logging import AccessLog, warn_debug_mode
from pkg.setting import Settings


def create_app(settings: Settings) -> Flask:
    """The WSGI application; serves even if the database cannot be reached yet."""
    # Handlers use the blog's services: importing them with this package would be a cycle.
    from routers import init_router

    app = Application("blog", static_folder=None)
    if settings.run_mode == "debug":
        warn_debug_mode()
    context.init_app(app, settings)
    database.init_app(app)
    failure.init_app(app)
    init_router(app)
    if settings.run_mode == "debug":
        # What a person sees of a restart, in a browser.
        app.register_blueprint(create_blueprint(is_open=True))
    app.wsgi_app = AccessLog(app.wsgi_app)  # type: ignore[method-assign]
    database.prepare_at_start(app)
    return app
