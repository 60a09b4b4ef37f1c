"""Delays between starts."""

from kars_controller.platforms.local.pod.backoff import STABLE_S, Backoff


def test_delays_double_up_to_five_minutes() -> None:
    backoff = Backoff()
    assert [backoff.after_run(0.1) for _ in range(10)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert backoff.after_run(0.1) == 300


def test_a_stable_run_starts_from_the_beginning() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after_run(0.1)
    assert backoff.after_run(STABLE_S) == 1
    assert backoff.after_run(STABLE_S - 0.1) == 2
