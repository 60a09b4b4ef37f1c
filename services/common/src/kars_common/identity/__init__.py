"""Workload identity: obtaining an X.509-SVID and keeping it fresh.

Three sources behind one Protocol: the controller's own authority, files that somebody else renews, and a
SPIRE agent's Workload API.
"""

from kars_common.identity.attestation import Attestation, JoinToken, KubernetesToken
from kars_common.identity.controller import ControllerSvidSource
from kars_common.identity.csr import create_csr
from kars_common.identity.file import FileSvidSource, load_svid
from kars_common.identity.spire import SpireSvidSource
from kars_common.svid import Svid, SvidSource, spiffe_id_of

__all__ = [
    "Attestation",
    "ControllerSvidSource",
    "FileSvidSource",
    "JoinToken",
    "KubernetesToken",
    "SpireSvidSource",
    "Svid",
    "SvidSource",
    "create_csr",
    "load_svid",
    "spiffe_id_of",
]
