"""The relay's frames as bytes: taken apart at field borders, put together again, never understood."""

from kars_relay.frames.scanning import Frame, FrameError, Run, cut, scan, scan_submission
from kars_relay.frames.writing import MAX_BATCH_BYTES, MAX_BATCH_ENVELOPES, delivery

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_ENVELOPES",
    "Frame",
    "FrameError",
    "Run",
    "cut",
    "delivery",
    "scan",
    "scan_submission",
]
