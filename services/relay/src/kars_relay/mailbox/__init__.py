"""Mailboxes: what was accepted waits here, durably, until its recipient acknowledges it."""

from kars_relay.mailbox.base import MailboxStore, MailboxUsage, NewRun, Reader, Refused, StoredRun, Totals

__all__ = ["MailboxStore", "MailboxUsage", "NewRun", "Reader", "Refused", "StoredRun", "Totals"]
