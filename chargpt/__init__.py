"""chargpt: a character-level GPT as a reproducible DVC pipeline. `chargpt.load(path)` is a model to use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chargpt.inference.facade import load as load


def __getattr__(name: str) -> Any:
    """`load`, imported at its first use: `import chargpt` alone takes milliseconds."""
    if name != "load":
        raise AttributeError(f"module 'chargpt' has no attribute {name!r}")
    from chargpt.inference.facade import load

    return load
