import pytest
import torch
from torch.nn import functional as F

from toolkit.learn.nets import conv_net, mlp, small_resnet
from toolkit.learn.stacked import StackedMLP


def test_shapes_of_the_reference_networks():
    assert mlp(7, 5, 3)(torch.zeros(2, 7)).shape == (2, 3)
    assert conv_net(8, 16, 32)(torch.zeros(2, 1, 28, 28)).shape == (2, 32, 4, 4)
    assert small_resnet(8, 16, norm="group")(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 16, 16)


def test_a_network_without_norm_has_biases():
    assert conv_net(4, norm="none")[0].bias is not None
    assert conv_net(4)[0].bias is None


@pytest.mark.parametrize(
    "make",
    [lambda: mlp(3), lambda: mlp(3, 0), lambda: conv_net(), lambda: conv_net(8, norm="layer")],
)
def test_bad_widths_and_norms_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_each_replica_is_an_mlp_of_its_own():
    stack = StackedMLP(3, (4, 6, 2), generators(range(3)))
    x = torch.randn(3, 5, 4)
    for r in range(3):
        net = mlp(4, 6, 2)
        with torch.no_grad():
            for layer, weight, bias in zip(
                (net[0], net[2]), stack.weights, stack.biases, strict=True
            ):
                layer.weight.copy_(weight[r].T)
                layer.bias.copy_(bias[r, 0])
        torch.testing.assert_close(stack(x)[r], net(x[r]))


def test_a_replica_does_not_depend_on_its_company():
    alone = StackedMLP(1, (4, 6, 2), generators([7]))
    among = StackedMLP(3, (4, 6, 2), generators([1, 7, 3]))
    assert torch.equal(alone.weights[0][0], among.weights[0][1])


def test_the_sum_of_losses_trains_each_replica_as_alone():
    stack = StackedMLP(2, (4, 6, 2), generators([0, 1]))
    single = stack.fork(torch.tensor([1]))
    x, y = torch.randn(2, 5, 4), torch.randint(2, (2, 5))
    sum(F.cross_entropy(stack(x)[r], y[r]) for r in range(2)).backward()
    F.cross_entropy(single(x[1:])[0], y[1]).backward()
    torch.testing.assert_close(stack.weights[0].grad[1], single.weights[0].grad[0])


def test_a_fork_shares_nothing():
    stack = StackedMLP(2, (4, 2))
    twin = stack.fork(torch.tensor([0, 0, 1]))
    with torch.no_grad():
        twin.weights[0].zero_()
    assert twin.weights[0].shape[0] == 3
    assert stack.weights[0].abs().sum() > 0


def test_bad_stacks_are_refused():
    with pytest.raises(ValueError, match="replicas"):
        StackedMLP(0, (4, 2))
    with pytest.raises(ValueError, match="generators"):
        StackedMLP(2, (4, 2), generators([0]))
