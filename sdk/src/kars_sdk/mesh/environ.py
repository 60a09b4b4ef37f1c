"""What the sandbox tells an agent about the mesh, read from the environment once.

Nothing secret is in the environment: names of files, and the address of the door.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kars_sdk.mesh.agent import MeshAgent
from kars_sdk.mesh.door import DEFAULT_URL, Door
from kars_sdk.mesh.errors import IdentityError, StoreError
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.statements import TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Profile

_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Where everything is."""

    peer: PeerName
    """`KARS_MESH_PEER`: our SPIFFE id."""
    trust_keys: Path
    """`KARS_MESH_TRUST_KEYS`: the file of keys that identity statements are believed from."""
    door: str
    """`KARS_ROUTER_URL`: the router's door."""
    state: Path
    """`KARS_MESH_STATE`: folder of the sealed state, for one process. `~/.kars/mesh`."""
    state_key: Path
    """`KARS_MESH_STATE_KEY`: file with the 32 bytes that seal it. Made on first start where it is missing; a
    key that the platform mounts protects against whoever copies the state's disk."""
    anchor: Path
    """`KARS_MESH_ANCHOR`: file that notices a state that was put back; best where backups do not reach."""
    incoming: Path
    """`KARS_MESH_INCOMING`: folder for received files. `~/incoming`."""
    capabilities: tuple[str, ...]
    """`KARS_MESH_CAPABILITIES`: what we offer, separated by commas."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "MeshSettings":
        """Read the settings.

        Raises:
            IdentityError: `mesh_not_configured`, `peer_name_invalid`.
        """
        missing = [name for name in ("KARS_MESH_PEER", "KARS_MESH_TRUST_KEYS") if not environ.get(name)]
        if missing:
            raise IdentityError(
                "mesh_not_configured", f"{' and '.join(missing)} not set: this sandbox is in no mesh"
            )
        home = Path(environ.get("HOME") or "/sandbox")
        state = Path(environ.get("KARS_MESH_STATE") or home / ".kars" / "mesh")
        capabilities = (each.strip() for each in environ.get("KARS_MESH_CAPABILITIES", "").split(","))
        return cls(
            peer=peer_name(environ["KARS_MESH_PEER"]),
            trust_keys=Path(environ["KARS_MESH_TRUST_KEYS"]),
            door=environ.get("KARS_ROUTER_URL") or DEFAULT_URL,
            state=state,
            state_key=Path(environ.get("KARS_MESH_STATE_KEY") or state.with_name("mesh.key")),
            anchor=Path(environ.get("KARS_MESH_ANCHOR") or state / "anchor"),
            incoming=Path(environ.get("KARS_MESH_INCOMING") or home / "incoming"),
            capabilities=tuple(each for each in capabilities if each),
        )


def state_key(path: Path) -> bytes:
    """Return the key that seals the state; makes one where there is none.

    Raises:
        StoreError: `state_key_wrong`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, os.urandom(_KEY_BYTES))
            os.fsync(file)
        finally:
            os.close(file)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise StoreError("state_key_wrong", f"{path} must hold {_KEY_BYTES} bytes, got {len(key)}")
    return key


@contextlib.asynccontextmanager
async def open_agent(settings: MeshSettings, *, door: Door | None = None) -> AsyncIterator[MeshAgent]:
    """Run a mesh agent through the router's door for as long as the context lasts.

    Raises:
        StoreError: the state cannot be used.
        IdentityError: `trust_keys_invalid`.
    """
    way = door or Door(settings.door)
    store = Store(settings.state, state_key(settings.state_key), anchor=settings.anchor)

    async def policy() -> TrustPolicy:
        return TrustPolicy.from_json(await way.policy())

    try:
        async with MeshAgent(
            name=settings.peer,
            store=store,
            transport=way,
            registry=way,
            trust=lambda: TrustKeys.from_json(settings.trust_keys.read_bytes()),
            policy=policy,
            incoming=settings.incoming,
            profile=Profile(capabilities=settings.capabilities),
        ) as agent:
            yield agent
    finally:
        store.close()
        if door is None:
            await way.close()
