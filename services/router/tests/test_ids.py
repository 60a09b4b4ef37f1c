"""Ids are never given out twice, also not by a forked child."""

import os

from kars_router.pipeline.ids import new_call_id, new_trace_id


def test_ids_are_well_formed_and_never_repeat() -> None:
    calls = [new_call_id() for _ in range(5000)]
    traces = [new_trace_id() for _ in range(5000)]
    assert len({*calls}) == len({*traces}) == 5000
    assert {len(each) for each in calls} == {26}
    assert {len(each) for each in traces} == {16}
    assert [each[:12] for each in calls] == sorted(each[:12] for each in calls)


def test_a_forked_child_does_not_go_on_where_its_parent_does() -> None:
    new_trace_id()  # the parent has a block of randomness left
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, new_trace_id().encode())
        os._exit(0)
    os.close(write_end)
    mine = new_trace_id()
    theirs = os.read(read_end, 64).decode()
    os.close(read_end)
    os.waitpid(child, 0)
    assert len(theirs) == 16
    assert theirs != mine
