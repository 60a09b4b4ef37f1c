"""Human approval of held calls: who holds what, who decided, who must be told."""

from kars_controller.approvals.attachments import Attachments
from kars_controller.approvals.registry import ApprovalRegistry

__all__ = ["ApprovalRegistry", "Attachments"]
