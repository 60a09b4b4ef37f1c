"""Groups by pairwise fan-out: each member gets its own copy in its own session (ADR 0012).

A group belongs to the peer that made it; only its word changes the members. A message names the group's
version, and counts only from a peer that is a member in the reader's own view. There is no group key that
could leak what others wrote.
"""

import os
from dataclasses import dataclass, replace

from kars_sdk.mesh import payloads
from kars_sdk.mesh.errors import PayloadError
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.payloads import Json
from kars_sdk.mesh.store import Store

UPDATE, MESSAGE = "group/update", "group/message"
MAX_MEMBERS = 64
MAX_GROUPS = 256
MAX_NAME = 64
_GROUP = "group"


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group as this agent knows it."""

    group_id: bytes
    name: str
    owner: PeerName
    version: int
    members: frozenset[PeerName]

    def encode(self) -> bytes:
        """Return the group's bytes, for the store and for members."""
        members: list[Json] = [*sorted(self.members)]
        document: dict[str, Json] = {
            "group": self.group_id.hex(),
            "name": self.name,
            "owner": self.owner,
            "version": self.version,
            "members": members,
        }
        return payloads.encode_json(document)

    @classmethod
    def decode(cls, data: bytes) -> "Group":
        """Read a group.

        Raises:
            PayloadError, IdentityError: it is none.
        """
        document = payloads.decode_object(data)
        members = payloads.list_of(document, "members", most=MAX_MEMBERS)
        return cls(
            group_id=_group_id(document),
            name=payloads.text_of(document, "name", most=MAX_NAME),
            owner=peer_name(payloads.text_of(document, "owner", most=512)),
            version=payloads.number_of(document, "version", most=1 << 53),
            members=frozenset(peer_name(each) for each in members if isinstance(each, str)),
        )


@dataclass(frozen=True, kw_only=True)
class GroupText:
    """A text that a member wrote to a group."""

    group: Group
    text: str


class Groups:
    """The groups that this agent is in."""

    def __init__(self, store: Store, own: PeerName) -> None:
        self._store = store
        self._own = own

    def create(self, name: str, members: frozenset[PeerName]) -> Group:
        """Make a group of us and others. The caller sends `group.encode()` to all of them.

        Raises:
            PayloadError: `group_name_invalid`, `group_too_large`, `too_many_groups`.
        """
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise PayloadError(
                "group_name_invalid", f"a group's name has 1 to {MAX_NAME} printable characters"
            )
        if self._store.count(_GROUP) >= MAX_GROUPS:
            raise PayloadError("too_many_groups", f"an agent is in at most {MAX_GROUPS} groups")
        group = Group(
            group_id=os.urandom(16), name=name, owner=self._own, version=1, members=members | {self._own}
        )
        return self._keep(group)

    def change(
        self,
        group_id: bytes,
        *,
        add: frozenset[PeerName] = frozenset(),
        remove: frozenset[PeerName] = frozenset(),
    ) -> Group:
        """Change the members of a group of ours. The caller tells members old and new.

        Raises:
            PayloadError: `group_unknown`, `group_not_ours`, `group_too_large`.
        """
        group = self.get(group_id)
        if group.owner != self._own:
            raise PayloadError("group_not_ours", f"only {group.owner} changes the group {group.name!r}")
        members = ((group.members | add) - remove) | {self._own}
        return self._keep(replace(group, version=group.version + 1, members=members))

    def updated(self, sender: PeerName, body: bytes) -> Group:
        """Take the owner's word about a group. An older word than ours changes nothing.

        Raises:
            PayloadError: `group_not_theirs`, `group_owner_changed`, `too_many_groups`, `group_too_large`.
        """
        group = Group.decode(body)
        if group.owner != sender:
            raise PayloadError("group_not_theirs", f"{sender} speaks for a group of {group.owner}")
        record = self._store.get(_GROUP, group.group_id)
        if record is None:
            if self._store.count(_GROUP) >= MAX_GROUPS:
                raise PayloadError("too_many_groups", f"an agent is in at most {MAX_GROUPS} groups")
            return self._keep(group)
        known = Group.decode(record)
        if known.owner != sender:
            raise PayloadError("group_owner_changed", f"the group {known.name!r} belongs to {known.owner}")
        return known if group.version <= known.version else self._keep(group)

    def get(self, group_id: bytes) -> Group:
        """Return a group.

        Raises:
            PayloadError: `group_unknown`: there is none, or we are no member any more.
        """
        record = self._store.get(_GROUP, group_id)
        group = None if record is None else Group.decode(record)
        if group is None or self._own not in group.members:
            raise PayloadError("group_unknown", "we are in no such group")
        return group

    def all(self) -> list[Group]:
        """Return the groups that we are a member of, by name."""
        groups = [Group.decode(record) for _, record in self._store.items(_GROUP)]
        return sorted((each for each in groups if self._own in each.members), key=lambda each: each.name)

    @staticmethod
    def encode_text(group: Group, text: str) -> bytes:
        """Return a message for every member."""
        return payloads.encode_json({"group": group.group_id.hex(), "version": group.version, "text": text})

    def read_text(self, sender: PeerName, body: bytes) -> GroupText:
        """Read a member's message.

        Raises:
            PayloadError: `group_unknown`, `group_not_a_member`.
        """
        document = payloads.decode_object(body)
        group = self.get(_group_id(document))
        if sender not in group.members:
            raise PayloadError("group_not_a_member", f"{sender} is no member of {group.name!r}")
        return GroupText(group=group, text=payloads.text_of(document, "text", most=payloads.MAX_TEXT_BYTES))

    def _keep(self, group: Group) -> Group:
        if len(group.members) > MAX_MEMBERS:
            raise PayloadError("group_too_large", f"a group has at most {MAX_MEMBERS} members")
        with self._store.transaction():
            self._store.put(_GROUP, group.group_id, group.encode())
        return group


def _group_id(document: dict[str, Json]) -> bytes:
    try:
        group_id = bytes.fromhex(payloads.text_of(document, "group", most=32))
    except ValueError as exc:
        raise PayloadError("member_invalid", "group must be a hexadecimal id") from exc
    if len(group_id) != 16:
        raise PayloadError("member_invalid", "group must have 16 bytes")
    return group_id
