"""The part of the SPIFFE Workload API that is used here: FetchX509SVID.

Field numbers are those of `workload.proto` of the SPIFFE standard. The messages live in a descriptor
pool of their own, so that another copy of that file in the process cannot clash with them.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

FETCH_X509_SVID = "/SpiffeWorkloadAPI/FetchX509SVID"

SECURITY_METADATA = (("workload.spiffe.io", "true"),)
"""Every call must carry it: a browser or a proxied request cannot."""

_FILE = """
name: "workload.proto"
syntax: "proto3"
message_type { name: "X509SVIDRequest" }
message_type {
  name: "X509SVIDResponse"
  field { name: "svids" number: 1 type: TYPE_MESSAGE type_name: ".X509SVID" label: LABEL_REPEATED }
  field { name: "crl" number: 2 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "X509SVID"
  field { name: "spiffe_id" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "x509_svid" number: 2 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "x509_svid_key" number: 3 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "bundle" number: 4 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "hint" number: 5 type: TYPE_STRING label: LABEL_OPTIONAL }
}
"""

_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_FILE, descriptor_pb2.FileDescriptorProto()))


def _message(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


X509SVIDRequest = _message("X509SVIDRequest")
X509SVIDResponse = _message("X509SVIDResponse")
X509SVID = _message("X509SVID")
