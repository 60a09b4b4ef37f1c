"""How much a peer may send: token buckets that take as much as fits."""

from kars_relay.quota.buckets import Bucket, SenderQuota

__all__ = ["Bucket", "SenderQuota"]
