"""Policy distribution: versions, signatures, who holds which bundle."""

from kars_controller.distribution.publisher import PolicyPublisher, Published
from kars_controller.distribution.sessions import Acknowledgement, PolicySessions, Refused

__all__ = ["Acknowledgement", "PolicyPublisher", "PolicySessions", "Published", "Refused"]
