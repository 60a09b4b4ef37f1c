"""Reads an AGT policy profile into the rules of a policy bundle, or says all that is wrong with it.

    version: "1.0"
    agent: name
    defaultAction: deny          # ours; absent means allow
    policies:
      - {name: r1, type: capability, allowed_actions: [], denied_actions: [], priority: 100, conditions: {}}
      - {name: r2, type: approval, actions: [], min_approvals: 1}
      - {name: r3, type: rate_limit, actions: [], max_calls: 500, window: 60s}

Rules come out by descending priority, then file order. A rule type or field that we do not know is
refused: it may be a control that somebody relies on.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kars.policy.v1 import policy_pb2
from kars_common.errors import InvalidInputError

from kars_controller.profiles import durations
from kars_controller.profiles.loading import YamlRefusedError, load
from kars_controller.raw import Raw

_MAX_INT32 = 2**31 - 1
_TOP = ("version", "agent", "description", "defaultAction", "policies")
_COMMON = ("name", "type", "conditions", "priority", "scope", "description")
_FIELDS = {
    "capability": ("allowed_actions", "denied_actions"),
    "approval": ("actions", "min_approvals"),
    "rate_limit": ("actions", "max_calls", "window"),
}
MAX_APPROVERS = 32
_DEFAULTS = {"allow": policy_pb2.VERDICT_ALLOW, "deny": policy_pb2.VERDICT_DENY}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `path` begins with a dot or bracket, or is empty for the whole."""

    path: str
    description: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile that was understood."""

    rules: tuple[policy_pb2.Rule, ...]
    default_verdict: policy_pb2.Verdict.ValueType
    remarks: tuple[str, ...]


def parse(text: str) -> Profile:
    """Read a profile.

    Raises:
        InvalidInputError: `profile_invalid`, with the first problems in its message.
    """
    found = list(problems(text))
    if found:
        listed = "; ".join(f"{item.path.lstrip('.')}: {item.description}".lstrip(": ") for item in found[:3])
        raise InvalidInputError("profile_invalid", f"policy profile: {listed}")
    document = load(text)
    rules = [_rule(entry) for entry in document.get("policies") or ()]
    rules.sort(key=lambda rule: -rule.priority)  # stable: equal priorities keep file order
    default = _DEFAULTS[document.get("defaultAction", "allow")]
    return Profile(tuple(rules), default, tuple(_remarks(document)))


def problems(text: str) -> Iterator[Problem]:
    """Yield all that is wrong with a profile."""
    try:
        document = load(text)
    except YamlRefusedError as exc:
        yield Problem("", str(exc))
        return
    if not isinstance(document, Mapping):
        yield Problem("", f"got {_shown(document)}, allowed: an object with version, agent and policies")
        return
    yield from _unknown("", document, _TOP)
    for name in ("version", "agent"):
        if not isinstance(document.get(name), str) or not document[name].strip():
            yield Problem(f".{name}", f"got {_shown(document.get(name))}, allowed: text (write it in quotes)")
    if document.get("defaultAction", "allow") not in _DEFAULTS:
        yield Problem(".defaultAction", f"got {_shown(document['defaultAction'])}, allowed: allow, deny")
    rules = document.get("policies")
    if rules is not None and not isinstance(rules, list):
        yield Problem(".policies", f"got {_shown(rules)}, allowed: a list")
        return
    names: set[str] = set()
    for index, rule in enumerate(rules or ()):
        yield from _rule_problems(f".policies[{index}]", rule, names)


def _rule_problems(path: str, rule: Raw, names: set[str]) -> Iterator[Problem]:
    if not isinstance(rule, Mapping):
        yield Problem(path, f"got {_shown(rule)}, allowed: an object")
        return
    name, kind = rule.get("name"), rule.get("type")
    if not isinstance(name, str) or not name.strip():
        yield Problem(f"{path}.name", f"got {_shown(name)}, allowed: text")
    elif name in names:
        yield Problem(f"{path}.name", f"got {name[:60]!r} twice; names must be unique")
    else:
        names.add(name)
    if kind not in _FIELDS:
        yield Problem(f"{path}.type", f"got {_shown(kind)}, allowed: {', '.join(_FIELDS)}")
        return
    yield from _unknown(path, rule, (*_COMMON, *_FIELDS[kind]))
    if "priority" in rule and not _is_int(rule["priority"], -_MAX_INT32):
        yield Problem(f"{path}.priority", f"got {_shown(rule['priority'])}, allowed: an integer")
    for field in ("allowed_actions", "denied_actions", "actions"):
        yield from _pattern_problems(f"{path}.{field}", rule.get(field))
    yield from _condition_problems(f"{path}.conditions", rule.get("conditions"))
    if kind == "approval" and not _is_int(rule.get("min_approvals", 1), 1, MAX_APPROVERS):
        # A hold that asks for more could not be published, and would stop those beside it.
        allowed = f"1 to {MAX_APPROVERS}"
        yield Problem(f"{path}.min_approvals", f"got {_shown(rule['min_approvals'])}, allowed: {allowed}")
    if kind in ("approval", "rate_limit") and not rule.get("actions"):
        yield Problem(f"{path}.actions", "is required: at least one pattern")
    if kind == "rate_limit":
        if not _is_int(rule.get("max_calls"), 1):
            yield Problem(f"{path}.max_calls", f"got {_shown(rule.get('max_calls'))}, allowed: at least 1")
        if durations.parse_ms(str(rule.get("window"))) is None:
            yield Problem(
                f"{path}.window",
                f"got {_shown(rule.get('window'))}, allowed: 1s or more, such as 60s, 5m, 1h",
            )


def _pattern_problems(path: str, value: Raw) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, list):
        yield Problem(path, f"got {_shown(value)}, allowed: a list of patterns")
        return
    for index, item in enumerate(value):
        if not isinstance(item, str) or not item.strip():
            yield Problem(
                f"{path}[{index}]",
                f"got {_shown(item)}, allowed: a pattern such as tool:read_file or shell:*",
            )


def _condition_problems(path: str, value: Raw) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield Problem(path, f"got {_shown(value)}, allowed: an object")
        return
    for key, item in value.items():
        members = item if isinstance(item, list) else [item]
        if not members or any(isinstance(member, dict | list) or member is None for member in members):
            yield Problem(f"{path}.{key}", f"got {_shown(item)}, allowed: a value or a list of values")


def _unknown(path: str, given: Mapping[str, Any], known: tuple[str, ...]) -> Iterator[Problem]:
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.6)
            near = f" (did you mean {close[0]}?)" if close else ""
            yield Problem(f"{path}.{name}", f"unknown field{near}; allowed: {', '.join(known)}")


def _rule(entry: Mapping[str, Any]) -> policy_pb2.Rule:
    rule = policy_pb2.Rule(name=entry["name"], priority=entry.get("priority", 0))
    for key, value in (entry.get("conditions") or {}).items():
        members = value if isinstance(value, list) else [value]
        rule.conditions.add(key=key, any_of=[_text(member) for member in members])
    if entry["type"] == "capability":
        rule.capability.allowed_actions.extend(entry.get("allowed_actions") or ())
        rule.capability.denied_actions.extend(entry.get("denied_actions") or ())
        rule.capability.SetInParent()
    elif entry["type"] == "approval":
        rule.approval.actions.extend(entry["actions"])
        rule.approval.min_approvals = entry.get("min_approvals", 1)
    else:
        rule.rate_limit.actions.extend(entry["actions"])
        rule.rate_limit.max_calls = entry["max_calls"]
        rule.rate_limit.window_ms = durations.parse_ms(str(entry["window"])) or 0
    return rule


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    for index, rule in enumerate(document.get("policies") or ()):
        if str(rule.get("scope", "Global")).lower() != "global":
            yield f"spec.agtProfile.inline.policies[{index}].scope: rules hold for the whole sandbox"


def _text(value: Raw) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_int(value: Raw, least: int, most: int = _MAX_INT32) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _shown(value: Raw) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value)[:80]
