"""`kars version`."""

from importlib import metadata

from kars_cli import options, output
from kars_cli.output import DataFormat

_PACKAGES = ("kars-cli", "kars-common", "kars-controller", "kars-router")


def version(form: options.DataOutput = DataFormat.TABLE) -> None:
    """Show which kars this is."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if form is not DataFormat.TABLE:
        output.data(found, form)
        return
    for package, number in found.items():
        print(f"{package} {number}")
