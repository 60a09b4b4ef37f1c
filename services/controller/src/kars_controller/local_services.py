"""The services that the local platform runs beside the controller, and what each is told."""

from importlib import util

from kars_controller.platforms.local.services import ServicePlan

RELAY_MODULE = "kars_relay"


def installed(module: str) -> bool:
    """Tell whether a service can be started with our own interpreter."""
    return util.find_spec(module) is not None


def relay_plan(
    *,
    trust_domain: str,
    controller_endpoint: str,
    bootstrap_endpoint: str,
    trust_bundle_pem: bytes,
    policy_keys: bytes,
    witness_key: bytes,
    federation_address: str | None = None,
) -> ServicePlan:
    """Return the mesh relay: it finds and trusts the controller as every router does."""
    return ServicePlan(
        name="relay",
        module=RELAY_MODULE,
        prefix="KARS_RELAY_",
        settings={
            "TRUST_DOMAIN": trust_domain,
            "CONTROLLER_ENDPOINT": controller_endpoint,
            "BOOTSTRAP_ENDPOINT": bootstrap_endpoint,
            **({} if federation_address is None else {"FEDERATION_ADDRESS": federation_address}),
        },
        files={
            "TRUST_BUNDLE_FILE": trust_bundle_pem,
            "POLICY_KEYS_FILE": policy_keys,
            "WITNESS_KEY_FILE": witness_key,
        },
    )
