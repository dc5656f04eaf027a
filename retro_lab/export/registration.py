"""Tell transformers' Auto classes of our models, without importing transformers for those who do not use it.

`import retro_lab` takes milliseconds, and transformers seconds, so what is registered waits for transformers:

1. `import retro_lab` registers `RetroConfig` if the Auto classes are imported already, and otherwise as soon as they
   are, whoever imports them.
2. The first `RetroConfig` that is made, such as that of a folder, registers model and tokenizer. Nobody looks them up
   before they have one, and by then every module of transformers that they need can be imported, which is not so while
   transformers is being imported itself.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Register `RetroConfig` now if the Auto classes are imported, and otherwise right after they are."""
    if AUTO_CLASSES in sys.modules:
        _register_config()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Has `_register_config` called once `AUTO_CLASSES` is imported; otherwise that import is as it always is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return nothing for any other module."""
        if fullname != AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register_config()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from retro_lab.export.configuration import RetroConfig

    AutoConfig.register(RetroConfig.model_type, RetroConfig, exist_ok=True)
