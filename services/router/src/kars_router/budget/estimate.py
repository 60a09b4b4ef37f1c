"""How many tokens a request may cost at most, before it is sent.

The prompt is estimated from its bytes, pessimistically for prose, code and CJK
text; a provider that reports more is charged as reported. The output is a true
bound: the request always carries one, set here when the caller set none.
"""

from dataclasses import dataclass

from kars_router.inference.request import ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """Settings of the estimate.

    Attributes:
        bytes_per_token: prompt bytes that make one token.
        tokens_per_image: charged for each inline image.
        default_output: output bound per choice when the caller sets none.
    """

    bytes_per_token: float = 3.0
    tokens_per_image: int = 2_000
    default_output: int = 4_096

    def prompt(self, request: ChatRequest) -> int:
        """Return the prompt's estimate."""
        text = int(request.prompt_bytes / self.bytes_per_token) + 1
        return text + request.images * self.tokens_per_image

    def output(self, request: ChatRequest, prompt: int, per_request: int) -> int:
        """Return the output bound per choice: the caller's, or the default cut to what the cap leaves."""
        if request.max_output is not None:
            return request.max_output
        if not per_request:
            return self.default_output
        return max(1, min(self.default_output, (per_request - prompt) // request.choices))
