"""The loop calls whoever owns a descriptor now, and nobody who owned it before."""

import os

from kars_controller.platforms.local.pod.loop import Loop


def test_a_number_that_was_reused_in_the_same_turn_does_not_call_its_former_owner() -> None:
    loop = Loop()
    called: list[str] = []
    pipes = {name: os.pipe() for name in ("one", "two")}
    for _, write in pipes.values():
        os.write(write, b"x")
    replaced: list[int] = []

    def owner(name: str, other: str) -> None:
        called.append(name)
        if replaced:
            loop.stop()
            return
        # Forget the other, and let its number be reused by somebody whose data has not come yet.
        number = pipes[other][0]
        loop.forget(number)
        os.close(number)
        fresh, silent = os.pipe()
        assert fresh == number
        replaced.extend((fresh, silent))
        loop.on_readable(fresh, lambda: called.append("fresh"))
        loop.call_later(0, loop.stop)

    loop.on_readable(pipes["one"][0], lambda: owner("one", "two"))
    loop.on_readable(pipes["two"][0], lambda: owner("two", "one"))
    loop.run()

    assert len(called) == 1
    for descriptor in {*replaced, *(write for _, write in pipes.values())}:
        os.close(descriptor)
    for read, _ in pipes.values():
        if read not in replaced:
            os.close(read)
