"""Finds the runtimes that are installed beside this checkout, or where the settings say."""

from pathlib import Path

from kars_common.errors import KarsError

from kars_controller.platforms.base import ReadOnlyMount
from kars_controller.platforms.local.python_runtime import python_mounts
from kars_controller.runtimes import InstalledRuntime, RuntimeCatalog
from kars_controller.settings import ControllerSettings

_OPENAI_AGENTS = "kars_runtime_openai_agents"
_PYDANTIC_AI = "kars_runtime_pydantic_ai"


def discover(settings: ControllerSettings) -> RuntimeCatalog:
    """Return the runtimes that can be started. Blocks: asks each interpreter once where its files are."""
    installed: dict[str, InstalledRuntime] = {}
    venvs = checkout_dir(settings) / ".venvs"
    for kind, venv, module in (
        ("PydanticAi", settings.runtime_pydantic_ai or venvs / "pydantic-ai", _PYDANTIC_AI),
        ("OpenAIAgents", settings.runtime_openai_agents or venvs / "openai-agents", _OPENAI_AGENTS),
    ):
        runtime = _python_runtime(venv, module)
        if runtime is not None:
            installed[kind] = runtime
    return RuntimeCatalog(installed=installed)


def checkout_dir(settings: ControllerSettings) -> Path:
    """Return where runtimes are looked for: the folder of the workspace that this file is installed from."""
    if settings.checkout_dir is not None:
        return settings.checkout_dir
    for parent in Path(__file__).resolve().parents:
        if (parent / "runtimes").is_dir():
            return parent
    return Path.cwd()


def _python_runtime(venv: Path, module: str) -> InstalledRuntime | None:
    interpreter = venv / "bin" / "python"
    if not interpreter.exists():
        return None
    mounts: tuple[ReadOnlyMount, ...]
    try:
        mounts = python_mounts(interpreter)
    except KarsError:  # a broken environment is no runtime; the sandbox that wants it says so
        return None
    return InstalledRuntime(
        argv=(str(interpreter), "-m", module), bin_dir=str(interpreter.parent), mounts=mounts
    )
