"""What another Python runs first: says which versions it has, waits for approval, and becomes the server.

This file is run by its path, by any Python 3, so it imports only the standard library until it is approved.
"""

import importlib
import importlib.util
import json
import os
import sys
from multiprocessing.connection import Connection

PACKAGES = ("numpy", "gymnasium")


def versions() -> dict:
    """Version of Python; version of each package, or why it cannot be imported."""
    found: dict = {"python": list(sys.version_info[:2]), "missing": {}}
    for name in PACKAGES:
        try:
            found[name] = importlib.import_module(name).__version__
        except Exception as error:  # A broken package may raise anything.
            found["missing"][name] = f"{type(error).__name__}: {error}"
    return found


def load_package() -> None:
    """Import `dreamer` from where this file is, without the packages that are installed next to it."""
    place = os.path.abspath(__file__)
    for _ in range(3):
        place = os.path.dirname(place)
    spec = importlib.util.spec_from_file_location(
        "dreamer", os.path.join(place, "__init__.py"), submodule_search_locations=[place]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["dreamer"] = package
    spec.loader.exec_module(package)


def main() -> None:
    """Talk over the socket whose file descriptor is the only argument."""
    sys.path[0] = os.getcwd()  # Modules of users, as for commands, and not the files next to this one.
    with Connection(int(sys.argv[1])) as connection:
        connection.send_bytes(json.dumps(versions()).encode())
        try:
            connection.recv_bytes()
        except EOFError:
            return
        load_package()
        importlib.import_module("dreamer.envs.interpreter.server").serve(connection)


if __name__ == "__main__":
    main()
