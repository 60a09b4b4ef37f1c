"""Platform values as messages of the Sandboxes contract."""

from kars.sandbox.v1 import sandbox_pb2

from kars_controller.platforms.base import (
    ContainerState,
    ContainerStatus,
    ControlState,
    HostReport,
    IsolationControl,
)

_STATES = {
    ContainerState.WAITING: sandbox_pb2.CONTAINER_STATE_WAITING,
    ContainerState.RUNNING: sandbox_pb2.CONTAINER_STATE_RUNNING,
    ContainerState.TERMINATED: sandbox_pb2.CONTAINER_STATE_TERMINATED,
}
_CONTROLS = {
    ControlState.ENFORCED: sandbox_pb2.CONTROL_STATE_ENFORCED,
    ControlState.DEGRADED: sandbox_pb2.CONTROL_STATE_DEGRADED,
    ControlState.ABSENT: sandbox_pb2.CONTROL_STATE_UNAVAILABLE,
}
_TIERS = {"unusable": "unsupported"}


def container(status: ContainerStatus) -> sandbox_pb2.ContainerStatus:
    """Return a container's status."""
    message = sandbox_pb2.ContainerStatus(
        name=status.name,
        state=_STATES[status.state],
        reason=status.reason,
        message=status.message,
        restart_count=status.restart_count,
        last_exit_code=status.exit_code or 0,
        ready=status.ready,
    )
    if status.started_at is not None:
        message.started_at.FromDatetime(status.started_at)
    return message


def control(observed: IsolationControl) -> sandbox_pb2.IsolationControl:
    """Return an isolation control; the remedy only where something is missing."""
    return sandbox_pb2.IsolationControl(
        name=observed.name,
        state=_CONTROLS[observed.state],
        detail=observed.detail,
        remedy="" if observed.state is ControlState.ENFORCED else observed.remedy,
    )


def host_report(report: HostReport) -> sandbox_pb2.GetHostReportResponse:
    """Return what a machine can give."""
    return sandbox_pb2.GetHostReportResponse(
        platform=report.platform,
        kernel=report.kernel,
        root=report.root,
        tier=_TIERS.get(report.tier, report.tier),
        controls=[control(item) for item in report.controls],
    )


def printable(data: bytes) -> bytes:
    """Return log bytes as valid UTF-8."""
    return data.decode("utf-8", "replace").encode()
