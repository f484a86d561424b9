"""Build and start things: settings, the data folder, the roles and what watches over them."""

from millstream.wiring.build import make_driver, new_key, new_root_key, open_store, root_key
from millstream.wiring.serve import run_role, serve
from millstream.wiring.settings import Settings, SettingsError, settings

__all__ = [
    "Settings",
    "SettingsError",
    "make_driver",
    "new_key",
    "new_root_key",
    "open_store",
    "root_key",
    "run_role",
    "serve",
    "settings",
]
