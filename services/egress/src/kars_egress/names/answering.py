"""One answer to one question, without asking anybody: every name has the same synthetic address.

Software that knows no proxy connects to it, and meets the door that captures; which name it meant is in its
TLS server name or its Host header. Nothing that an agent puts into a name leaves the sandbox here. No HTTPS
records: a client gets no keys to encrypt the server name with.
"""

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

ADDRESS = "198.18.0.1"
MAX_QUERY_BYTES = 1232
_TTL_S = 1


def answer(query: bytes) -> bytes | None:
    """Return the answer to a query; None for what is no query, which gets none."""
    if len(query) > MAX_QUERY_BYTES:
        return None
    try:
        message = dns.message.from_wire(query, ignore_trailing=False)
        if message.flags & dns.flags.QR:
            return None
        reply = dns.message.make_response(message, recursion_available=True)
        _fill(message, reply)
        return reply.to_wire(max_size=MAX_QUERY_BYTES)
    except (dns.exception.DNSException, ValueError, NotImplementedError):
        return None


def _fill(message: dns.message.Message, reply: dns.message.Message) -> None:
    if message.opcode() is not dns.opcode.QUERY or len(message.question) != 1:
        reply.set_rcode(dns.rcode.NOTIMP)
        return
    question = message.question[0]
    if question.rdclass != dns.rdataclass.IN:
        reply.set_rcode(dns.rcode.REFUSED)
    elif question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, _TTL_S, "IN", "A", ADDRESS))
    # Anything else exists and has no records: the client goes on with what it has.
