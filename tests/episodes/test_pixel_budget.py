"""A budget of pixels that threads share: never exceeded, given back, refused at a deadline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from made_videos import film, picture

from roboalign_ray.episodes.pixel_budget import PIXELS, PixelBudget, PixelsBusyError
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import UserError


def test_leases_of_many_threads_never_exceed_the_budget() -> None:
    budget, most, lock = PixelBudget(100), [0], threading.Lock()

    def work(number: int) -> None:
        with budget.lease(10 + number % 41):
            with lock:
                most[0] = max(most[0], budget.held)
            time.sleep(0.001)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(200)))
    assert 50 < most[0] <= 100
    assert budget.held == 0


def test_a_lease_that_does_not_come_is_refused_and_one_that_does_is_given() -> None:
    budget = PixelBudget(100)
    with budget.lease(60):
        with pytest.raises(PixelsBusyError, match="60 of 100 pixels, 50 more"), budget.lease(50, wait_s=0):
            pass
        with budget.lease(40, wait_s=0):
            assert budget.held == 100
    assert budget.held == 0
    with pytest.raises(PixelsBusyError, match="this process may hold 100"), budget.lease(101, wait_s=60):
        pass
    assert issubclass(PixelsBusyError, UserError)


def test_a_lease_waits_until_another_ends() -> None:
    budget, entered = PixelBudget(10), threading.Event()

    def hold() -> None:
        with budget.lease(10):
            entered.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with budget.lease(1, wait_s=30):
        assert budget.held == 1
    thread.join()


def test_pixels_are_given_back_after_an_error() -> None:
    budget = PixelBudget(10)
    with pytest.raises(KeyError), budget.lease(10):
        raise KeyError
    assert budget.held == 0


def test_decoding_leases_what_it_will_keep() -> None:
    data = film([picture(0, t) for t in range(10)])
    with pytest.raises(PixelsBusyError, match="40960 pixels"):
        decode_video(data, budget=PixelBudget(64 * 64 * 10 - 1))
    assert len(decode_video(data, budget=PixelBudget(64 * 64 * 10))) == 10
    assert len(decode_video(data, budget=None)) == 10
    assert PIXELS.held == 0
