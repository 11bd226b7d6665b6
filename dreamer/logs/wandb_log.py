"""A run at Weights & Biases, continued when the run is resumed, and kept on disk if the service is out of reach."""

import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from dreamer.logs.sinks import Entry, in_one_line


class WandbClient:
    """Sends entries to one run.

    Without a network or a key the client keeps the run in ``LOGDIR/wandb``, to be sent later with ``wandb sync``.

    Args:
        logdir: directory of the run; its ``wandb_id.txt`` holds the id with which a resumed run continues.
        options: additional keyword arguments of ``wandb.init``.
        say: prints a message.

    Raises:
        Exception: the client cannot be used offline either; any type that it raises.
    """

    def __init__(self, logdir: pathlib.Path, options: Mapping[str, Any], say: Callable[[str], object]):
        import wandb  # Slow to import, and not needed by most runs.

        self._module: Any = wandb
        # Silent, as it would otherwise wait for a key on the terminal.
        options = {"dir": str(logdir), "id": _run_id(logdir), "resume": "allow", **options}
        options["settings"] = self._module.Settings(silent=True)
        try:
            self._run: Any = self._module.init(**options)
            say(f"Weights & Biases: {self._run.url or 'this run is kept in ' + str(logdir / 'wandb')}")
        except (Exception, SystemExit) as error:
            self._run = self._module.init(**options, mode="offline")
            say(
                f"Weights & Biases is out of reach ({in_one_line(error)}). The run is kept in {logdir / 'wandb'}; "
                f"send it later with: wandb sync {logdir / 'wandb' / 'offline-run-*'}"
            )
        # A resumed run goes back to its last checkpoint; the client's built-in step cannot go back.
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, entry: Entry) -> None:
        """See `dreamer.logs.sinks.Client.log`."""
        row: dict[str, Any] = dict(entry.line)
        for name, path in entry.pictures.items():
            kind = self._module.Video if path.suffix == ".gif" else self._module.Image
            row[name] = kind(str(path))
        for name, table in entry.tables.items():
            row[name] = self._module.Table(columns=list(table.columns), data=[list(line) for line in table.rows])
        self._run.log(row)

    def finish(self) -> None:
        """See `dreamer.logs.sinks.Client.finish`."""
        self._run.finish()


def _run_id(logdir: pathlib.Path) -> str:
    path = logdir / "wandb_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


__all__ = ["WandbClient"]
