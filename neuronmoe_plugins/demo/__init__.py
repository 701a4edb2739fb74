"""The demo: a small real model learns Greek from real text, through the commands that a user would type."""

from importlib.util import find_spec

from neuronmoe_plugins.errors import UserError


def require_demo_packages() -> None:
    """Raise UserError if a package of the `demo` extra is not installed."""
    missing = [name for name in ("bs4", "gguf", "llamafactory", "lm_eval") if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; install them with `pip install neuronmoe-plugins[demo]`")
