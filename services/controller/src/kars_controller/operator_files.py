"""What the controller leaves for the kars command on this machine: where it listens, and a way in.

`dev.json` says where; `cli/` holds an operator identity, for the user of this process only.
"""

import getpass
import json
import os
import re
from pathlib import Path

from kars_common import files
from kars_common.identity import Svid


def write_identity(directory: Path, svid: Svid) -> None:
    """Write the operator identity; the key before the certificate that needs it."""
    files.replace(directory / "operator.key", svid.private_key_pem)
    files.replace(directory / "trust.pem", svid.trust_bundle_pem)
    files.replace(directory / "operator.pem", svid.certificate_chain_pem)


def write_endpoints(path: Path, *, endpoint: str, bootstrap_endpoint: str, trust_domain: str) -> None:
    """Write dev.json, last: who reads it may connect."""
    document = {
        "controller": {
            "endpoint": endpoint,
            "bootstrapEndpoint": bootstrap_endpoint,
            "dnsName": f"controller.svc.{trust_domain}",
            "pid": os.getpid(),
        },
        "trustDomain": trust_domain,
    }
    files.replace(path, json.dumps(document, indent=2).encode() + b"\n")


def user_name() -> str:
    """Return the user of this process, fit for a SPIFFE id."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    clean = re.sub(r"[^a-zA-Z0-9._-]", "-", name)[:64]
    return clean if clean.strip(".") else f"uid-{os.getuid()}"
