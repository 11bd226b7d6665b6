"""The reference of all config keys, as ``python -m dreamer.train --help`` prints it."""

import dataclasses
from typing import Any

from dreamer.config.fields import key_of
from dreamer.config.schema import Config


def reference() -> str:
    """Help text: every key with type, default, unit and meaning, one after another."""
    lines: list[str] = []

    def describe(section: Any, prefix: str) -> None:
        for field in dataclasses.fields(section):
            key = prefix + key_of(field.name)
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                lines.append(f"\n{key}: {field.metadata['help']}")
                describe(value, f"{key}.")
                continue
            kind = getattr(field.type, "__name__", "") if isinstance(field.type, type) else str(field.type)
            kind = kind.replace("typing.", "")
            default = f"'{value}'" if isinstance(value, str) else value
            unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
            lines.append(f"  {key:<28} {kind} = {default}{unit}\n      {field.metadata['help']}")

    describe(Config(), "")
    return "\n".join(lines)
