"""The runtime contract: an unknown one is refused."""

import ast
import sys
from pathlib import Path

import kars_sdk
import pytest
from kars_sdk.contract import CHAT_PORT, ContractError, RuntimeContract


def test_contract_is_read_from_the_environment() -> None:
    contract = RuntimeContract.from_environ(
        {"KARS_RUNTIME_CONTRACT_VERSION": "v1", "SANDBOX_NAME": "a", "KARS_MODEL": "m"}
    )
    assert (contract.sandbox, contract.model, contract.chat_port) == ("a", "m", CHAT_PORT)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "contract_version_missing"),
        ({"KARS_RUNTIME_CONTRACT_VERSION": ""}, "contract_version_missing"),
        ({"KARS_RUNTIME_CONTRACT_VERSION": "v2"}, "contract_version_unsupported"),
        ({"KARS_RUNTIME_CONTRACT_VERSION": "v1", "KARS_CHAT_PORT": "99999"}, "chat_port_invalid"),
    ],
)
def test_unknown_contracts_are_refused(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(ContractError) as caught:
        RuntimeContract.from_environ(environ)
    assert caught.value.reason == reason


EXTRAS = {
    "mesh": {"cryptography", "doubleratchet", "x3dh", "xeddsa", "kars", "grpc", "google", "httpx2"},
    "mcp": {"mcp", "httpx2", "pydantic"},
}
"""What a part of the sdk may use beside the standard library; each is in its extra of pyproject.toml."""


def test_the_core_needs_the_standard_library_only_and_each_part_its_own_extra() -> None:
    folder = Path(kars_sdk.__file__).parent
    for file in folder.rglob("*.py"):
        allowed = {"kars_sdk"} | EXTRAS.get(file.relative_to(folder).parts[0], set())
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file}: {name}"
