"""`launch` returns what ranks return and ends all when one fails; `gather_with_grad` sums."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from toolkit.learn.distributed import gather_with_grad, launch, world


def describe(scale):
    rank, size = world()
    return {"rank": rank, "size": size, "tensor": torch.full((2,), float(rank)) * scale}


def fail_on_last():
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("no such class")
    dist.barrier()


def die_on_last():
    if dist.get_rank() == dist.get_world_size() - 1:
        os._exit(3)
    time.sleep(60)


def sleep():
    time.sleep(60)


def gathered_gradient(rows):
    x = (torch.arange(rows * 2.0).view(rows, 2) + 10 * dist.get_rank()).requires_grad_()
    everyone = gather_with_grad(x)
    weight = torch.arange(float(everyone.numel())).view_as(everyone) * (1 + dist.get_rank())
    (everyone * weight).sum().backward()
    return everyone.detach(), x.grad


def test_without_a_group_a_process_is_a_world_of_one():
    x = torch.ones(3, 2, requires_grad=True)
    assert world() == (0, 1)
    assert gather_with_grad(x) is x


@pytest.mark.slow
def test_results_come_back_in_the_order_of_ranks():
    results = launch(describe, 2, 3.0)
    assert [result["rank"] for result in results] == [0, 1]
    assert all(result["size"] == 2 for result in results)
    torch.testing.assert_close(results[1]["tensor"], torch.full((2,), 3.0))


@pytest.mark.slow
def test_gather_orders_by_rank_and_sums_the_gradient_over_ranks():
    (first, first_grad), (second, second_grad) = launch(gathered_gradient, 2, 2)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[2:], torch.tensor([[10.0, 11.0], [12.0, 13.0]]))
    weight = torch.arange(8.0).view(4, 2) * 3  # 1 from rank 0 and 2 from rank 1
    torch.testing.assert_close(torch.cat([first_grad, second_grad]), weight)


@pytest.mark.slow
def test_a_failed_rank_ends_all_and_its_error_is_shown():
    with pytest.raises(RuntimeError, match="rank 1 failed"):
        launch(fail_on_last, 2, timeout=60)


@pytest.mark.slow
def test_a_dead_rank_ends_all():
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 died"):
        launch(die_on_last, 2, timeout=50)
    assert time.monotonic() - begin < 45  # long before the other rank wakes


@pytest.mark.slow
def test_a_world_that_does_not_return_is_ended():
    with pytest.raises(TimeoutError, match=r"ranks \[0\]"):
        launch(sleep, 1, timeout=3)


@pytest.mark.parametrize(("size", "timeout"), [(0, 1), (1, 0)])
def test_refuses_an_empty_world_or_no_time(size, timeout):
    with pytest.raises(ValueError, match="must be"):
        launch(describe, size, 1.0, timeout=timeout)
