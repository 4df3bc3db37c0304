"""Settings of the blog: an INI file and the environment become frozen, typed values.

`schema` declares each key once: its type, range and default. `loader` reads the file, lets the
environment override it and refuses what it does not know. Both speak in one line.
"""

from pkg.setting.loader import load
from pkg.setting.schema import App, Database, Server, Settings, SettingsError

__all__ = ["App", "Database", "Server", "Settings", "SettingsError", "load"]
