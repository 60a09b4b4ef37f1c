"""The image contract of bring-your-own runtimes."""

from kars_common.errors import FailedPreconditionError

from kars_controller.api_types.runtimes import Byo

_SHORTEST_DIGEST = 9


def check(byo: Byo | None, *, strict: bool) -> None:
    """Pass, or refuse in strict mode.

    Raises:
        FailedPreconditionError: `byo_contract_invalid`.
    """
    problem = None if byo is None else image_problem(byo.image)
    if strict and problem is not None:
        raise FailedPreconditionError("byo_contract_invalid", f"spec.runtime.byo.image: {problem}")


def image_problem(image: str) -> str | None:
    """Return what is wrong with an image reference; it must be pinned by digest or carry a tag."""
    if any(char.isspace() for char in image):
        return "must not contain white space"
    _, at, digest = image.partition("@sha256:")
    if at:
        return None if len(digest) >= _SHORTEST_DIGEST else "digest is too short"
    name, colon, tag = image.rpartition("/")[2].partition(":")
    return None if name and colon and tag else "must carry a tag or a sha256 digest"
