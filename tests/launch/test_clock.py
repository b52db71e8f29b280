import time

import pytest

from trimtab.core.events import STEP_PARTS
from trimtab.launch.runtime.clock import StepClock


def seconds(clock: StepClock) -> dict[str, float]:
    return {part.name: part.seconds for part in clock.finish().parts}


def test_all_parts_are_named_in_order_and_add_up() -> None:
    clock = StepClock()
    clock.start(num_waves=0)
    with clock.part("forward"):
        time.sleep(0.01)
    times = clock.finish()
    assert tuple(part.name for part in times.parts) == STEP_PARTS
    assert sum(part.seconds for part in times.parts) == pytest.approx(times.step_s)


def test_an_inner_part_is_taken_off_the_outer_one() -> None:
    clock = StepClock()
    clock.start(num_waves=0)
    with clock.part("forward"):
        with clock.part("attention communication"):
            time.sleep(0.05)
        assert clock.doing == "forward"
    parts = seconds(clock)
    assert parts["attention communication"] >= 0.05
    assert parts["forward"] < 0.05


def test_time_in_no_part_is_waiting() -> None:
    clock = StepClock()
    clock.start(num_waves=0)
    time.sleep(0.02)
    with clock.part("optimizer"):
        pass
    assert seconds(clock)["waiting"] >= 0.02


def test_waves_without_a_group_take_no_time() -> None:
    clock = StepClock()
    clock.start(num_waves=3)
    with clock.wave(1):
        time.sleep(0.01)
    first, second, third = clock.finish().waves_s
    assert first == third == 0.0
    assert second >= 0.01


def test_a_new_step_starts_from_nothing() -> None:
    clock = StepClock()
    with clock.part("backward"):
        time.sleep(0.02)
    clock.start(num_waves=0)
    assert seconds(clock)["backward"] == 0.0
