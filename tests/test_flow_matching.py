"""Flow matching by hand: straight lines, time shift, Euler's schedule, guidance."""

import pytest
import torch

from unimllm.flow_matching import euler, euler_schedule, guide, path, time_shift, velocity


def test_the_path_leads_from_noise_to_data_and_its_velocity_is_constant():
    x0, x1 = torch.tensor([[0.0, 4.0], [1.0, 1.0]]), torch.tensor([[8.0, 0.0], [3.0, -1.0]])
    t = torch.tensor([0.25, 0.5])
    torch.testing.assert_close(path(x0, x1, t), torch.tensor([[2.0, 3.0], [2.0, 0.0]]))
    assert torch.equal(path(x0, x1, torch.zeros(2)), x0) and torch.equal(path(x0, x1, torch.ones(2)), x1)
    assert torch.equal(velocity(x0, x1), torch.tensor([[8.0, -4.0], [2.0, -2.0]]))
    ahead = path(x0, x1, t + 0.25)
    torch.testing.assert_close((ahead - path(x0, x1, t)) / 0.25, velocity(x0, x1))


def test_the_time_shift_by_hand():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(time_shift(t, 0.5), torch.tensor([0.0, 1 / 7, 1 / 3, 1.0]))
    torch.testing.assert_close(time_shift(t, 3.0), torch.tensor([0.0, 0.5, 0.75, 1.0]))
    assert torch.equal(time_shift(t, 1.0), t)


def test_schedules_by_hand():
    times, steps = euler_schedule(4)
    torch.testing.assert_close(times, torch.tensor([0.0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(steps, torch.full((4,), 0.25))
    times, steps = euler_schedule(2, alpha=0.5)
    torch.testing.assert_close(times, torch.tensor([0.0, 1 / 3]))
    torch.testing.assert_close(steps, torch.tensor([1 / 3, 2 / 3]))


def test_the_released_schedule_reaches_the_data_and_adds_a_step_there():
    assert len(euler_schedule(100, start=0.9)[0]) == 10  # not 9, though 100 * (1 - 0.9) is a little below 10
    times, steps = euler_schedule(5, extra_step=True)
    torch.testing.assert_close(times, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(steps, torch.tensor([0.25, 0.25, 0.25, 0.25, 0.2]))
    times, steps = euler_schedule(10, alpha=0.5, start=0.1, extra_step=True)  # 9 times, the first of them shifted
    assert len(times) == 9 and float(times[0]) == pytest.approx(0.05 / 0.95) and float(times[-1]) == 1
    assert float(steps[-1]) == pytest.approx(1 / 9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("start", [0.0, 0.1, 0.6])
def test_a_straight_flow_integrates_exactly_whatever_the_steps(alpha, start):
    x0, x1 = torch.randn(2, 3, dtype=torch.double), torch.randn(2, 3, dtype=torch.double)
    for num_steps in (1, 3, 20):
        times, steps = euler_schedule(num_steps, alpha, start)
        assert float(times[0]) == pytest.approx(start)
        begin = path(x0, x1, torch.full((2,), start, dtype=torch.double))
        torch.testing.assert_close(euler(begin, lambda x, t: x1 - x0, times, steps), x1, rtol=0, atol=1e-6)


def test_the_velocity_is_asked_at_the_point_and_the_time_that_were_reached():
    asked, calls = [], []

    def velocity_at(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append((float(x), float(t)))
        return torch.full_like(x, 2.0)

    end = euler(torch.tensor([1.0]), velocity_at, *euler_schedule(2), on_step=lambda: calls.append(1))
    assert asked == [(1.0, 0.0), (2.0, 0.5)] and float(end) == 3.0 and len(calls) == 2


def test_guidance_one_is_the_conditional_velocity_and_more_goes_beyond_it():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert float(guide(conditional, unconditional, 1.0)) == 3.0
    assert float(guide(conditional, unconditional, 0.0)) == 1.0
    assert float(guide(conditional, unconditional, 9.5)) == 20.0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_steps": 0}, "steps"),
        ({"num_steps": 4, "alpha": 0.0}, "time shift"),
        ({"num_steps": 4, "alpha": float("nan")}, "time shift"),
        ({"num_steps": 4, "start": 1.0}, "start"),
    ],
)
def test_impossible_schedules_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        euler_schedule(**options)
