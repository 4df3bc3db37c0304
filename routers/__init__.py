"""The URL map and the handlers behind it."""

from routers.router import init_router

__all__ = ["init_router"]
