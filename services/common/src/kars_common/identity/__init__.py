"""Workload identity: obtaining an X.509-SVID and keeping it fresh.

Three sources behind one Protocol: the controller's own CA, files that somebody else renews, and a
SPIRE agent's Workload API.
"""

from kars_common.identity.csr import create_csr
from kars_common.identity.file import FileSvidSource, load_svid
from kars_common.identity.svid import Svid, SvidSource, spiffe_id_of

__all__ = ["FileSvidSource", "Svid", "SvidSource", "create_csr", "load_svid", "spiffe_id_of"]
