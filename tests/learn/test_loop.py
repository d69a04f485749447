import pytest
import torch
from torch import nn

from toolkit.learn.loop import fit, minibatches, predict, warmup_cosine


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def squared(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def batches(problem, steps=200, size=16, seed=0):
    return minibatches(
        *problem, size=size, steps=steps, generator=torch.Generator().manual_seed(seed)
    )


def test_fit_reaches_the_solution_and_returns_every_loss(problem):
    model = nn.Linear(3, 1)
    losses = fit(model, batches(problem), squared, torch.optim.SGD(model.parameters(), 0.1))
    assert losses.shape == (200,)
    assert losses[-1] < 1e-4


def test_fit_takes_the_step_of_the_plain_loop(problem):
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 1), nn.Linear(3, 1)
    plain.load_state_dict(ours.state_dict())
    fit(ours, batches(problem, 5), squared, torch.optim.SGD(ours.parameters(), 0.1))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for batch in batches(problem, 5):
        optimizer.zero_grad()
        squared(plain, batch).backward()
        optimizer.step()
    assert torch.equal(ours.weight, plain.weight)


def test_clipping_bounds_the_step(problem):
    model = nn.Linear(3, 1)
    before = model.weight.detach().clone()
    fit(model, batches(problem, 1), squared, torch.optim.SGD(model.parameters(), 1.0), clip=1e-3)
    assert (model.weight - before).norm() <= 1.001e-3


def test_the_schedule_steps_once_a_batch(problem):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: warmup_cosine(t, 10, 2))
    fit(model, batches(problem, 10), squared, optimizer, schedule=schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_mixed_precision_trains_too(problem):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = fit(model, batches(problem), squared, optimizer, amp=torch.bfloat16)
    assert losses[-1] < losses[0]


def test_no_batches_no_losses():
    model = nn.Linear(1, 1)
    assert fit(model, [], squared, torch.optim.SGD(model.parameters(), 0.1)).shape == (0,)


def test_each_epoch_shows_every_example_once_in_another_order():
    x = torch.arange(12)
    seen = [
        b for (b,) in minibatches(x, size=4, steps=6, generator=torch.Generator().manual_seed(1))
    ]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("size", [0, 5])
def test_a_batch_larger_than_the_data_is_refused(size):
    with pytest.raises(ValueError, match=r"1…4"):
        minibatches(torch.zeros(4), size=size, steps=1, generator=torch.Generator())


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="length"):
        minibatches(torch.zeros(4), torch.zeros(5), size=1, steps=1, generator=torch.Generator())


def test_predict_is_in_evaluation_mode_and_leaves_the_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    x = torch.ones(5, 3)
    assert torch.equal(predict(model, x, size=2), model[0](x))
    assert model.training


def test_warmup_rises_then_the_cosine_falls_to_zero():
    values = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert values[0] == 0.1
    assert values[9] == values[10] == 1
    assert values[100] == pytest.approx(0)
    assert values[10:] == sorted(values[10:], reverse=True)
