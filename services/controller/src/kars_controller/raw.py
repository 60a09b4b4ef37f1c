"""The type of JSON from a caller before it was checked. It ends where a model or a rule has looked at it."""

from typing import Any

Raw = Any
