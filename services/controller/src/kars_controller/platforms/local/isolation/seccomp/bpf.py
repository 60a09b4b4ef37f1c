"""A very small assembler for classic BPF as seccomp runs it. Refuses to know any system call."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

_LOAD_WORD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_GREATER_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06

NUMBER_OFFSET = 0
ARCHITECTURE_OFFSET = 4
_ARGUMENTS_OFFSET = 16

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000


class Instruction(NamedTuple):
    """One instruction: jumps are counted from the next one."""

    code: int
    if_true: int
    if_false: int
    operand: int


def load(offset: int) -> Instruction:
    """Load a word of the call's description."""
    return Instruction(_LOAD_WORD, 0, 0, offset)


def load_argument(index: int) -> Instruction:
    """Load the low word of an argument (both our architectures are little-endian)."""
    return load(_ARGUMENTS_OFFSET + 8 * index)


def give(action: int) -> Instruction:
    """End with an action."""
    return Instruction(_RETURN, 0, 0, action)


def refuse_with(code: int) -> int:
    """Return the action that fails a call with an errno."""
    return _ERRNO | code


def when_equal(value: int, then: Sequence[Instruction]) -> list[Instruction]:
    """Run then if the loaded word equals value, else step over it."""
    return [Instruction(_JUMP_EQUAL, 0, len(then), value), *then]


def unless_equal(value: int, then: Sequence[Instruction]) -> list[Instruction]:
    """Run then if the loaded word differs from value."""
    return [Instruction(_JUMP_EQUAL, len(then), 0, value), *then]


def when_any_bit(mask: int, then: Sequence[Instruction]) -> list[Instruction]:
    """Run then if the loaded word has any bit of mask."""
    return [Instruction(_JUMP_ANY_BIT, 0, len(then), mask), *then]


def when_at_least(value: int, then: Sequence[Instruction]) -> list[Instruction]:
    """Run then if the loaded word is at least value."""
    return [Instruction(_JUMP_GREATER_EQUAL, 0, len(then), value), *then]


def assemble(program: Sequence[Instruction]) -> bytes:
    """Return the bytes that the kernel takes.

    Raises:
        ValueError: a jump is too long for its byte.
    """
    for instruction in program:
        if max(instruction.if_true, instruction.if_false) > 255:
            raise ValueError(f"jump too long in {instruction}")
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
