"""From a pod's spec to the two containers' process specs: which root, which files, which environment.

The only module that knows what an agent's and a router's file systems look like. Starts nothing.
"""

import os
import resource
from pathlib import Path

from kars_controller.platforms.base import (
    AGENT_HOME,
    AGENT_UID,
    ROUTER_STATE_DIR,
    ROUTER_UID,
    ReadOnlyMount,
)
from kars_controller.platforms.local.isolation import container, rootfs
from kars_controller.platforms.local.isolation.seccomp import compiling
from kars_controller.platforms.local.pod import containment
from kars_controller.platforms.local.spec import PodSpec

_PATH = "/usr/local/bin:/usr/bin:/bin"
_ROUTER_SCRATCH_BYTES = 64 << 20
_ROUTER_FILES = 65536
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
# Nothing listens on port 53 of an empty namespace: the kernel refuses at once, where a silent resolver would
# turn one look-up of an agent framework's telemetry into minutes.
_REFUSING_RESOLVER = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def agent(
    spec: PodSpec,
    decided: containment.Containment,
    *,
    workspace: Path,
    rootless: bool,
) -> container.Spec:
    """Describe the agent container."""
    plan = spec.agent
    read_only = _binds(plan.runtime + plan.code)
    return container.Spec(
        name=spec.key.name,
        argv=plan.argv,
        env={
            "PATH": _PATH,
            **plan.env,
            "HOME": AGENT_HOME,
            "USER": "agent",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",  # noqa: S108  # the sandbox's own
        },
        directory=AGENT_HOME,
        uid=AGENT_UID,
        own_user_namespace=rootless,
        root=rootfs.Root(
            etc=_etc("agent", AGENT_UID, AGENT_HOME, spec.key.name)
            | {"hosts": "127.0.0.1 localhost router\n::1 localhost\n", "resolv.conf": _REFUSING_RESOLVER},
            read_only=read_only,
            read_write=(rootfs.Bind(source=str(workspace), target=AGENT_HOME),),
            scratch_bytes=plan.limits.tmp_bytes,
        ),
        syscall_filter=compiling.compile_profile(
            plan.isolation.seccomp, pin_affinity=decided.cpus is not None
        ),
        landlock_rules=containment.landlock_rules(plan, tuple(bind.target for bind in read_only))
        if decided.landlock
        else None,
        rlimits=decided.rlimits,
        cpus=decided.cpus,
        watch=decided.watch,
    )


def router(spec: PodSpec, *, state: Path, rootless: bool) -> container.Spec:
    """Describe the router container: the host's network and resolver, its own everything else."""
    host_files = tuple(
        rootfs.Bind(source=os.path.realpath(path), target=path)
        for path in ("/etc/hosts", "/etc/resolv.conf")
        if os.path.exists(path)
    )
    return container.Spec(
        name=f"{spec.key.name}-router",
        argv=spec.router.argv,
        env={
            "PATH": _PATH,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **spec.router.env,
            "HOME": ROUTER_STATE_DIR,
            "USER": "router",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",  # noqa: S108  # the container's own
            "KARS_ROUTER_DOOR_FD": str(container.FIRST_INHERITED_FD),
            "KARS_ROUTER_STATE_DIR": ROUTER_STATE_DIR,
        },
        directory=ROUTER_STATE_DIR,
        uid=ROUTER_UID,
        own_user_namespace=rootless,
        root=rootfs.Root(
            etc=_etc("router", ROUTER_UID, ROUTER_STATE_DIR, spec.key.name),
            read_only=_binds(spec.router.mounts) + host_files,
            read_write=(rootfs.Bind(source=str(state), target=ROUTER_STATE_DIR),),
            scratch_bytes=_ROUTER_SCRATCH_BYTES,
        ),
        syscall_filter=compiling.compile_profile(compiling.STRICT),
        rlimits={resource.RLIMIT_NOFILE: _ROUTER_FILES},
    )


def _binds(mounts: tuple[ReadOnlyMount, ...]) -> tuple[rootfs.Bind, ...]:
    return tuple(rootfs.Bind(source=str(mount.source), target=mount.target) for mount in mounts)


def _etc(user: str, uid: int, home: str, hostname: str) -> dict[str, str]:
    return {
        "passwd": f"root:x:0:0::/:/usr/sbin/nologin\n{user}:x:{uid}:{uid}::{home}:/bin/sh\n"
        "nobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "group": f"root:x:0:\n{user}:x:{uid}:\nnogroup:x:65534:\n",
        "nsswitch.conf": _NSSWITCH,
        "hostname": f"{hostname}\n",
    }
