"""Who may call what: one table a listener. A method that is in neither is refused."""

from kars_common.rpc import AuthorizationTable

_OPERATORS = ("operator/*",)
_CONTROLLER = ("svc/controller",)
_BOTH = (*_OPERATORS, *_CONTROLLER)
_PROXIES = ("svc/egress-proxy", "ns/*/sandbox/*")
_CONTROL = "kars.egress.v1.EgressControl"

CONTROL = AuthorizationTable(
    {
        f"{_CONTROL}/ApplySandbox": _CONTROLLER,
        f"{_CONTROL}/RemoveSandbox": _CONTROLLER,
        f"{_CONTROL}/GrantApproval": _BOTH,
        f"{_CONTROL}/RevokeApproval": _BOTH,
        f"{_CONTROL}/StartLearning": _OPERATORS,
        f"{_CONTROL}/Enforce": _OPERATORS,
        f"{_CONTROL}/GetSandboxStatus": _BOTH,
        f"{_CONTROL}/ListTargets": _OPERATORS,
        f"{_CONTROL}/ExplainUrl": _OPERATORS,
        f"{_CONTROL}/WatchDecisions": _OPERATORS,
        f"{_CONTROL}/GetBlocklist": _OPERATORS,
        "kars.audit.v1.AuditLog/ListRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/TailRecords": _OPERATORS,
        "kars.audit.v1.AuditLog/GetCheckpoint": _OPERATORS,
        "kars.audit.v1.AuditLog/GetInclusionProof": _OPERATORS,
        "kars.audit.v1.AuditLog/GetConsistencyProof": _OPERATORS,
    }
)
"""For people and the controller."""

PROXY = AuthorizationTable(
    {
        "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources": _PROXIES,
        "envoy.service.auth.v3.Authorization/Check": _PROXIES,
    }
)
"""For Envoy."""
