"""The `torch.backends` entry point, which torch calls at the end of `import torch` in every process.

It is a module of its own so that nothing in `neuronmoe_plugins`, not even a broken installation of it, can make
`import torch` fail, and so that `NEURONMOE_AUTOLOAD=0` leaves the package unimported for a later import by hand.
"""

import os


def autoload() -> None:
    """Import `neuronmoe_plugins`, which registers its post-import hooks; never raises."""
    if os.environ.get("NEURONMOE_AUTOLOAD") == "0":
        return
    try:
        import neuronmoe_plugins  # noqa: F401
    except Exception:  # an exception here would make `import torch` fail for every program on the machine
        import logging

        logging.getLogger("neuronmoe_plugins").exception("neuronmoe-plugins could not be loaded; torch is not affected")
